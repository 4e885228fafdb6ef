"""Many conversations with tools at the same time, and where their time goes."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas

from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.load.workload import Workload, unseen
from helpers.progress import Progress
from helpers.tools.conversation import PHASES, Conversation
from helpers.tools.loop import run_tools, several
from helpers.tools.schema import Tool


async def crowd(
    endpoint: Endpoint,
    work: Workload,
    tools: Iterable[Tool | Callable],
    *,
    users: Sequence[int] = (1, 2, 4, 8),
    conversations_per_user: int = 4,
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

    Returns:
        The conversations for each number of users. One that the server failed has the reason in
        ``stopped``.
    """
    tools, found = list(tools), dict[int, list[Conversation]]()
    async with endpoint.async_client() as client:

        async def converse(asked: Workload, number: int) -> Conversation:
            chat = asked.chat(number)
            message, cap = chat.turns[0]
            messages = [*chat.opening, message]
            try:
                return await run_tools(
                    endpoint, messages, tools, stream=True, max_tokens=cap,
                    temperature=work.temperature, client=client,
                )  # fmt: skip
            except CourseError as error:
                return Conversation(messages=messages, stopped=error.what)

        with Progress() as say:
            await converse(unseen(work, 0), 0)
            for count in users:
                many, asked = count * conversations_per_user, unseen(work, count)
                say(f"{count} users, {many} conversations")
                jobs = (converse(asked, number) for number in range(many))
                found[count] = await several(jobs, at_once=count)
    return found


def phases(crowds: Mapping[int, Sequence[Conversation]]) -> pandas.DataFrame:
    """Return where the time of conversations goes, one row for each number of users.

    Args:
        crowds: the conversations of each number of users.

    Returns:
        Conversations and how many of them have no answer; mean milliseconds of each phase (they
        add up to a conversation's mean), the 95th percentile of the whole, calls executed in a
        conversation, and conversations a minute. Times are of those that have an answer.
    """
    rows = {}
    for users, talks in crowds.items():
        good = [talk for talk in talks if not talk.stopped]
        took = {f"{phase}_ms": [1e3 * one.seconds(phase) for one in good] for phase in PHASES}
        table = pandas.DataFrame(took, dtype=float)
        ends = [one.began + ms / 1e3 for one, ms in zip(good, table.sum(axis=1), strict=True)]
        lasted = max(ends, default=0) - min((one.began for one in good), default=-1)
        rows[users] = {
            "conversations": len(talks),
            "failed": len(talks) - len(good),
            **table.mean(),
            "calls": sum(len(one.calls) for one in good) / max(len(good), 1),
            "whole_p95_ms": table.sum(axis=1).quantile(0.95),
            "per_minute": 60 * len(good) / lasted,
        }
    return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("users")
