"""How often a served model makes the right calls: every question asked once, and the scores.

From a terminal, for any OpenAI-compatible server:

    python -m helpers.tools.evaluate http://127.0.0.1:8000/v1 --failures
"""

import argparse
import asyncio
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter as clock
from typing import TYPE_CHECKING, Literal

from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.progress import Progress
from helpers.tools.ask import ask, connect
from helpers.tools.questions import CAUSES, REFUSED, RIGHT, Question, Verdict, judge, read

if TYPE_CHECKING:
    import pandas

Choice = Literal["auto", "required", "named"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The outcome of an evaluation; shown as its overall figures.

    Args:
        title: what was evaluated: model, engine, machine.
        tool_choice: how free the model was.
        seconds: that all questions took together.
        verdicts: one a question.
    """

    title: str
    tool_choice: str
    seconds: float
    verdicts: tuple[Verdict, ...]

    def table(self) -> "pandas.DataFrame":
        """One row a kind of question and one for all, with the 95 % interval of ``right``.

        ``right_tool`` counts questions whose calls have the right names, ``right`` those whose
        arguments are right as well; where no call belongs, both mean that there is none.
        """
        kinds = dict.fromkeys(one.question.kind for one in self.verdicts)
        rows = {kind: _row([v for v in self.verdicts if v.question.kind == kind]) for kind in kinds}
        return _frame(rows | {"all": _row(self.verdicts)}, "kind")

    def overall(self) -> "pandas.DataFrame":
        """The three figures that sum it up, each with its 95 % interval.

        Right tools and right calls are shares of the questions that need calls; right refusals of
        those that need none.
        """
        calls = [one for one in self.verdicts if one.question.calls]
        none = [one for one in self.verdicts if not one.question.calls]
        counted = {
            "right tool": (sum(one.right_tool for one in calls), len(calls)),
            "all arguments right": (sum(one.cause == RIGHT for one in calls), len(calls)),
            "no call where none belongs": (sum(one.cause == RIGHT for one in none), len(none)),
        }
        rows = {
            name: {"right": hits, "questions": of, **_share(hits, of)}
            for name, (hits, of) in counted.items()
            if of
        }
        return _frame(rows, "figure")

    def causes(self) -> "pandas.Series":
        """How many questions went wrong in which way."""
        import pandas

        found = [one.cause for one in self.verdicts]
        counts = {cause: found.count(cause) for cause in CAUSES if cause in found}
        return pandas.Series(counts, name="questions", dtype=int)

    def failures(self) -> "pandas.DataFrame":
        """One row a question that went wrong: what was expected, what came."""
        import pandas

        names = ["kind", "question", "expected", "got", "cause", "detail"]
        rows = [
            (v.question.kind, v.question.text, v.question.expected or "no call", v.got, v.cause,
             v.detail)
            for v in self.verdicts if v.cause != RIGHT
        ]  # fmt: skip
        return pandas.DataFrame(rows, columns=names)

    def __str__(self) -> str:
        lines = [
            f"{name}: {row.right} of {row.questions}, {row.percent:.0f} % "
            f"(95 % interval {row.low:.0f} to {row.high:.0f})"
            for name, row in self.overall().iterrows()
        ]
        return "\n".join(lines)

    __repr__ = __str__


async def evaluate(
    endpoint: Endpoint,
    questions: Iterable[Question] | None = None,
    *,
    tool_choice: Choice = "auto",
    users: int = 8,
    max_tokens: int = 256,
    request_s: float = 120.0,
    progress: bool = True,
) -> Evaluation:
    """Ask every question once, greedily, and score the calls; none of them is executed.

    How answers are scored is said in ``helpers.tools.questions``. A question to which the server
    gives no answer counts as wrong, with that as its cause.

    Args:
        endpoint: any OpenAI-compatible server that takes tools.
        questions: by default the course's own, ``assets/tool_questions.yaml``.
        tool_choice: ``auto``; or ``required`` or ``named`` (the function that belongs there), with
            which only the questions that need a call, or just one call, are asked.
        users: questions in flight at the same time.
        max_tokens: of each answer.
        request_s: seconds for one answer.
        progress: show a line of progress.

    Raises:
        CourseError: no question is left to be asked, or nobody to ask them.
    """
    chosen = [one for one in (read() if questions is None else questions)
              if tool_choice == "auto" or len(one.calls) == 1
              or (tool_choice == "required" and one.calls)]  # fmt: skip
    if not chosen or users < 1:
        raise CourseError("there is no question, or no user, to ask", "give at least one")
    free, done, began = asyncio.Semaphore(users), [], clock()
    async with connect(endpoint) as client:
        with Progress(shown=progress) as say:

            async def one(question: Question) -> Verdict:
                async with free:
                    request = _request(endpoint, question, tool_choice, max_tokens)
                    start = clock()
                    try:
                        reply = await ask(client, request, timeout_s=request_s)
                        verdict = judge(question, reply, clock() - start)
                    except CourseError as error:
                        verdict = Verdict(question=question, got=error.what, right_tool=False,
                                          cause=REFUSED, seconds=clock() - start)  # fmt: skip
                done.append(verdict)
                say(f"{len(done)} of {len(chosen)} questions")
                return verdict

            verdicts = await asyncio.gather(*map(one, chosen))
    return Evaluation(
        title=endpoint.title,
        tool_choice=tool_choice,
        seconds=clock() - began,
        verdicts=tuple(verdicts),
    )


def compare(first: Evaluation, second: Evaluation) -> "pandas.DataFrame":
    """Set two evaluations of the same questions side by side.

    Args:
        first: e.g. the reader's Mistral.
        second: e.g. a hosted API.

    Returns:
        One row a kind of question and one for all: how many were right in the first, in the
        second, and in one of them only.

    Raises:
        CourseError: they are of different questions.
    """
    import pandas

    asked = [[(v.question.text, v.question.expected) for v in one.verdicts]
             for one in (first, second)]  # fmt: skip
    if asked[0] != asked[1]:
        raise CourseError(
            "the two evaluations are of different questions",
            "evaluate both with the same questions and tool_choice",
        )
    rows: dict[str, list[int]] = {}
    for one, other in zip(first.verdicts, second.verdicts, strict=True):
        here, there = one.cause == RIGHT, other.cause == RIGHT
        for kind in (one.question.kind, "all"):
            row = rows.setdefault(kind, [0] * 5)
            for place, value in enumerate((True, here, there, here > there, there > here)):
                row[place] += value
    names = [one.title for one in (first, second)]
    names = names if names[0] != names[1] else [f"{name} ({n})" for n, name in enumerate(names, 1)]
    columns = ["questions", *names, "only the first", "only the second"]
    rows["all"] = rows.pop("all")
    return pandas.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("kind")


def wilson(hits: int, of: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share (Wilson 1927), also right for few questions.

    >>> [round(limit, 3) for limit in wilson(9, 10)]
    [0.596, 0.982]
    """
    z = 1.959964
    middle = (hits + z * z / 2) / (of + z * z)
    half = z / (of + z * z) * math.sqrt(hits * (of - hits) / of + z * z / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def _request(endpoint: Endpoint, question: Question, choice: Choice, max_tokens: int) -> dict:
    named = {
        "type": "function",
        "function": {"name": question.calls[0][0] if question.calls else ""},
    }
    return {
        "model": endpoint.model,
        "messages": question.messages,
        "tools": question.tools,
        "tool_choice": named if choice == "named" else choice,
        "max_tokens": max_tokens,
        "temperature": 0,
    }


def _row(verdicts: Sequence[Verdict]) -> dict:
    hits = sum(one.cause == RIGHT for one in verdicts)
    names = sum(one.right_tool for one in verdicts)
    return {"questions": len(verdicts), "right_tool": names, "right": hits,
            **_share(hits, len(verdicts))}  # fmt: skip


def _share(hits: int, of: int) -> dict:
    low, high = wilson(hits, of)
    return {"percent": round(100 * hits / of), "low": round(100 * low), "high": round(100 * high)}


def _frame(rows: dict[str, dict], name: str) -> "pandas.DataFrame":
    import pandas

    return pandas.DataFrame.from_dict(rows, orient="index").rename_axis(name)


async def _main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate the function calling of a server.")
    parser.add_argument("base_url", help="root of the API, e.g. http://127.0.0.1:8000/v1")
    parser.add_argument("--model", help="by default the first that the server names")
    parser.add_argument("--choice", choices=["auto", "required", "named"], default="auto")
    parser.add_argument("--users", type=int, default=8, help="questions in flight")
    parser.add_argument("--failures", action="store_true", help="show each question that failed")
    given = parser.parse_args()
    key = os.environ.get("OPENAI_API_KEY", "none")
    endpoint = Endpoint(base_url=given.base_url, model=given.model or "", api_key=key)
    model = given.model or endpoint.client().models.list().data[0].id
    endpoint = Endpoint(base_url=given.base_url, model=model, api_key=key)
    found = await evaluate(endpoint, tool_choice=given.choice, users=given.users)
    if given.failures:
        for row in found.failures().itertuples():
            print(f"\n{row.kind}: {row.question}\n  expected {row.expected}\n  got      {row.got}"
                  f"\n  {row.cause} {row.detail}")  # fmt: skip
    print(f"\n{found.table().to_string()}\n\n{found.causes().to_string()}\n\n{found}")
    print(f"{found.title}, {len(found.verdicts)} questions in {found.seconds:.0f} s")


if __name__ == "__main__":
    asyncio.run(_main())
