"""How often a served model makes the right calls: every question asked once, and the scores."""

from collections.abc import Iterable
from dataclasses import dataclass
from time import perf_counter as clock
from typing import Any, Literal

import pandas

from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.measure.quality import wilson
from helpers.progress import Progress
from helpers.tools.loop import ask, several
from helpers.tools.questions import ARGUMENTS, REFUSED, RIGHT, Question, judge, read


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Evaluation:
    """The outcome of an evaluation; shown as its overall figures.

    Args:
        title: what was evaluated: model, engine, machine.
        tool_choice: how free the model was.
        seconds: that all questions took together.
        frame: one row for each question: ``kind``, ``question``, ``expected``, ``got``, ``cause``
            (``right``, or what was wrong), ``right_tool`` and ``right``.
    """

    title: str
    tool_choice: str
    seconds: float
    frame: pandas.DataFrame

    def failures(self) -> pandas.DataFrame:
        """The rows of the questions that went wrong."""
        return self.frame[~self.frame["right"]].reset_index(drop=True)

    def table(self) -> pandas.DataFrame:
        """One row for each kind of question and one for all, with the 95 % interval of ``right``.

        ``right_tool`` counts questions whose calls have the right names, ``right`` those whose
        arguments are right as well; where no call belongs, both mean that there is none.
        """
        return _with_shares(_by_kind(self.frame[["kind", "right_tool", "right"]]))

    def overall(self) -> pandas.DataFrame:
        """The three figures that sum it up, each with its 95 % interval.

        Right tools and right calls are shares of the questions that need calls; right refusals of
        those that need none.
        """
        found, none = self.frame, self.frame["expected"] == "no call"
        hits = {
            "right tool": found["right_tool"][~none],
            "all arguments right": found["right"][~none],
            "no call where none belongs": found["right"][none],
        }
        counts = pandas.concat(hits).groupby(level=0, sort=False).agg(["sum", "size"])
        return _with_shares(counts.set_axis(["right", "questions"], axis=1))

    def __repr__(self) -> str:
        return "\n".join(
            f"{name}: {row.right} of {row.questions}, {row.percent} % "
            f"(95 % interval {row.low} to {row.high})"
            for name, row in self.overall().iterrows()
        )


async def evaluate(
    endpoint: Endpoint,
    questions: Iterable[Question] | None = None,
    *,
    tool_choice: Literal["auto", "required"] = "auto",
    users: int = 8,
) -> Evaluation:
    """Ask every question once, greedily, and score the calls; none of them is executed.

    How answers are scored is said in ``helpers.tools.questions``. A question to which the server
    gives no answer counts as wrong, with that as its cause.

    Args:
        endpoint: any OpenAI-compatible server that takes tools.
        questions: by default the course's own, ``assets/tool_questions.yaml``.
        tool_choice: ``auto``; or ``required``, with which only the questions that need a call are
            asked.
        users: questions in flight at the same time.
    """
    questions = read() if questions is None else questions
    chosen = [one for one in questions if one.calls or tool_choice == "auto"]
    options = {"model": endpoint.model, "tool_choice": tool_choice, "max_tokens": 256}
    began = clock()
    async with endpoint.async_client() as client:
        with Progress() as say:

            async def one(number: int, question: Question) -> dict[str, Any]:
                say(f"question {number} of {len(chosen)}")
                request = {"messages": question.messages, "tools": question.tools, "temperature": 0}
                try:
                    answer = await ask(client, options | request)
                    message = answer.message()
                    got = "; ".join(map(str, message.calls)) or message.text
                    cause = judge(question, message, answer.finish)
                except CourseError as error:
                    got, cause = error.what, REFUSED
                return {"kind": question.kind, "question": question.text, "got": got,
                        "expected": question.expected or "no call", "right": cause == RIGHT,
                        "cause": cause, "right_tool": cause in (RIGHT, ARGUMENTS)}  # fmt: skip

            jobs = (one(*numbered) for numbered in enumerate(chosen, 1))
            frame = pandas.DataFrame(await several(jobs, at_once=users))
    took = clock() - began
    return Evaluation(title=endpoint.title, tool_choice=tool_choice, seconds=took, frame=frame)


def difference(first: Evaluation, second: Evaluation) -> pandas.DataFrame:
    """Set two evaluations of the same questions side by side.

    Args:
        first: e.g. the reader's Mistral.
        second: e.g. a hosted API.

    Returns:
        One row for each kind of question and one for all: how many were right in the first, in the
        second, and in one of them only.

    Raises:
        CourseError: they are of different questions.
    """
    left, right = first.frame, second.frame
    if not left[["question", "expected"]].equals(right[["question", "expected"]]):
        hint = "evaluate both with the same questions and tool_choice"
        raise CourseError("the two evaluations are of different questions", hint)
    one, other = left["right"], right["right"]
    only = {"only the first": one & ~other, "only the second": other & ~one}
    return _by_kind(left[["kind"]].assign(first=one, second=other, **only))


def _by_kind(found: pandas.DataFrame) -> pandas.DataFrame:
    """Count questions, and what is true of them, by kind and for all."""
    rows = pandas.concat([found, found.assign(kind="all")])
    counts = rows.assign(questions=1).groupby("kind", sort=False).sum()
    return counts[["questions", *found.columns[1:]]]


def _with_shares(counts: pandas.DataFrame) -> pandas.DataFrame:
    """Add the percentage that is right, and the ends of its 95 % interval (Wilson 1927)."""
    percent, low, high = wilson(counts["right"], counts["questions"])
    shares = {"percent": percent, "low": low, "high": high}
    return counts.assign(**{name: (100 * x).round().astype(int) for name, x in shares.items()})
