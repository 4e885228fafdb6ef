"""Many conversations with tools at the same time, and where their time goes."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from time import perf_counter as clock
from typing import TYPE_CHECKING

from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.load.workload import Chat, Workload, unseen
from helpers.progress import Progress
from helpers.tools.ask import connect
from helpers.tools.conversation import PHASES, Conversation
from helpers.tools.loop import Limits, run_tools
from helpers.tools.schema import Tool

if TYPE_CHECKING:
    import pandas


async def crowd(
    endpoint: Endpoint,
    work: Workload,
    tools: Iterable[Tool | Callable],
    *,
    users: Sequence[int] = (1, 2, 4, 8),
    conversations_per_user: int = 4,
    stream: bool = True,
    limits: Limits | None = None,
    progress: bool = True,
) -> dict[int, list[Conversation]]:
    """Let more and more users talk to a model that calls functions.

    Each user begins a new conversation when the one before has ended (a closed loop). One
    conversation goes ahead and is not counted: it opens the connection and warms the server.

    Args:
        endpoint: the server.
        work: what is asked, of another seed for each number of users: the opening and the first
            turn of each of its conversations.
        tools: everything that may run; the workload's own definitions are not used.
        users: at the same time.
        conversations_per_user: of each number of users.
        stream: receive answers in pieces, so that times to first token are known.
        limits: of each conversation.
        progress: show a line of progress.

    Returns:
        For each number of users the conversations, in the order of their ends. One that the
        server failed has the reason in ``stopped``.
    """
    limits, tools, found = limits or Limits(), list(tools), {}
    async with connect(endpoint) as client:

        async def converse(chat: Chat) -> Conversation:
            message, cap = chat.turns[0]
            messages, began = [*chat.opening, message], clock()
            try:
                return await run_tools(
                    endpoint, messages, tools, stream=stream, limits=limits, max_tokens=cap,
                    temperature=work.temperature, client=client,
                )  # fmt: skip
            except CourseError as error:
                return Conversation(messages=messages, stopped=error.what, began=began)

        with Progress(shown=progress) as say:
            await converse(unseen(work, 0).chat(0))
            for count in users:
                say(f"{count} users, {count * conversations_per_user} conversations")
                asked, found[count] = unseen(work, count), []
                chats = iter([asked.chat(n) for n in range(count * conversations_per_user)])
                await asyncio.gather(*(_user(chats, converse, found[count]) for _ in range(count)))
    return found


def phases(crowds: Mapping[int, Sequence[Conversation]]) -> "pandas.DataFrame":
    """Return where the time of conversations goes, one row a number of users.

    Args:
        crowds: the conversations of each number of users.

    Returns:
        Conversations and how many of them have no answer; mean milliseconds of each phase (they
        add up to a conversation's mean), the 95th percentile of the whole, calls executed in a
        conversation, and conversations a minute. Times are of those that have an answer.
    """
    import numpy
    import pandas

    rows = {}
    for users, talks in sorted(crowds.items()):
        good = [talk for talk in talks if talk.steps and not talk.stopped]
        spent = {phase: [1e3 * talk.seconds(phase) for talk in good] for phase in PHASES}
        whole = [1e3 * talk.steps[-1].end_s for talk in good]
        begin = min((talk.began for talk in good), default=0.0)
        lasted = max((talk.began + talk.steps[-1].end_s for talk in good), default=0.0) - begin
        rows[users] = {
            "conversations": len(talks),
            "failed": len(talks) - len(good),
            **{f"{phase}_ms": numpy.mean(times or [numpy.nan]) for phase, times in spent.items()},
            "whole_p95_ms": numpy.percentile(whole or [numpy.nan], 95),
            "calls": numpy.mean([len(talk.calls) for talk in good] or [numpy.nan]),
            "per_minute": 60 * len(good) / lasted if good else 0.0,
        }
    return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("users")


async def _user(chats: Iterator[Chat], converse: Callable, ended: list[Conversation]) -> None:
    for chat in chats:  # shared by all users: whoever is free takes the next
        ended.append(await converse(chat))
