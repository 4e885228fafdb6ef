"""Many conversations with tools at the same time, and where their time goes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter as clock
from typing import TYPE_CHECKING

from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.load.workload import Workload, unseen
from helpers.progress import Progress
from helpers.tools.ask import connect, several
from helpers.tools.conversation import PHASES, Conversation
from helpers.tools.loop import run_tools
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
        progress: show a line of progress.

    Returns:
        The conversations for each number of users. One that the server failed has the reason in
        ``stopped``.
    """
    tools, found = list(tools), dict[int, list[Conversation]]()
    async with connect(endpoint) as client:

        async def converse(asked: Workload, number: int) -> Conversation:
            chat = asked.chat(number)
            message, cap = chat.turns[0]
            messages, began = [*chat.opening, message], clock()
            try:
                return await run_tools(
                    endpoint, messages, tools, stream=True, max_tokens=cap,
                    temperature=work.temperature, client=client,
                )  # fmt: skip
            except CourseError as error:
                return Conversation(messages=messages, stopped=error.what, began=began)

        with Progress(shown=progress) as say:
            await converse(unseen(work, 0), 0)
            for count in users:
                many, asked = count * conversations_per_user, unseen(work, count)
                say(f"{count} users, {many} conversations")
                jobs = (converse(asked, number) for number in range(many))
                found[count] = await several(jobs, at_once=count)
    return found


def phases(crowds: Mapping[int, Sequence[Conversation]]) -> "pandas.DataFrame":
    """Return where the time of conversations goes, one row for each number of users.

    Args:
        crowds: the conversations of each number of users.

    Returns:
        Conversations and how many of them have no answer; mean milliseconds of each phase (they
        add up to a conversation's mean), the 95th percentile of the whole, calls executed in a
        conversation, and conversations a minute. Times are of those that have an answer.
    """
    import pandas

    every = pandas.DataFrame(
        {
            "users": users,
            "failed": bool(talk.stopped or not talk.steps),
            **{f"{phase}_ms": 1e3 * talk.seconds(phase) for phase in PHASES},
            "whole_ms": 1e3 * talk.steps[-1].end_s if talk.steps else 0.0,
            "calls": len(talk.calls),
            "began": talk.began,
        }
        for users, talks in crowds.items()
        for talk in talks
    )
    every["ended"] = every["began"] + every["whole_ms"] / 1e3
    good = every[~every["failed"]].groupby("users")
    table = every.groupby("users")["failed"].agg(conversations="size", failed="sum")
    table = table.join(good[[f"{phase}_ms" for phase in PHASES]].mean())
    lasted = good["ended"].max() - good["began"].min()
    return table.assign(
        whole_p95_ms=good["whole_ms"].quantile(0.95),
        calls=good["calls"].mean(),
        per_minute=(60 * good.size() / lasted).reindex(table.index, fill_value=0.0),
    )
