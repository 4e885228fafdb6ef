"""Questions with expected calls, and whether the calls that a model made are those.

Scored as BFCL's "AST" categories are (Patil et al., The Berkeley Function Calling Leaderboard,
ICML 2025; https://gorilla.cs.berkeley.edu/leaderboard): first the function's name, then each
argument. Numbers are equal as numbers (2 is 2.0, and no text is a number); texts without regard to
case, spaces and punctuation; lists in order; objects by their keys. Several calls are compared in
any order. Each argument may have several right values, and an optional one may be left out.
"""

import itertools
import json
import re
from dataclasses import dataclass
from typing import Any

import yaml

from helpers.load.client.answer import Message
from helpers.settings import ASSETS

QUESTIONS = ASSETS / "tool_questions.yaml"
RIGHT, REFUSED = "right", "server failed"
ARGUMENTS = "wrong arguments"  # one missing, one too many, one of another value, or no JSON
# What can be wrong, in the order in which it is looked for.
CAUSES = (
    REFUSED, "needless call", "cut off", "no call", "wrong number of calls", "wrong tool", ARGUMENTS
)  # fmt: skip
_IGNORED = re.compile(r"[\s,./\\_*^'\"“”’!?:;-]")


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question.

    Args:
        kind: its category.
        messages: the chat to be sent.
        tools: definitions of the tools offered.
        calls: the calls expected, ``(name, {argument: allowed values})`` each; none for an answer
            in words.
    """

    kind: str
    messages: list[dict]
    tools: list[dict]
    calls: list[tuple[str, dict]]

    @property
    def text(self) -> str:
        """The last thing that the user says."""
        return [one["content"] for one in self.messages if one["role"] == "user"][-1]

    @property
    def expected(self) -> str:
        """The calls expected, with all that is allowed."""
        texts = [(name, json.dumps(ways, ensure_ascii=False)) for name, ways in self.calls]
        return "; ".join(f"{name}({text})" for name, text in texts)


def read() -> list[Question]:
    """Return the course's questions; the head of their file explains its form."""
    source = yaml.safe_load(QUESTIONS.read_text())
    return [_question(row, source["tools"]) for row in source["questions"]]


def judge(question: Question, message: Message, finish: str = "") -> str:
    """Return ``right`` if the calls of a message are the expected ones, else what is wrong first.

    Args:
        question: what was asked.
        message: the model's answer.
        finish: the server's reason for its end.

    Returns:
        ``right``, or one of ``CAUSES``.
    """
    made = [(call.name, call.parsed()) for call in message.calls]
    names = [name for name, _ in question.calls]
    if made and not names:
        return "needless call"
    if names and not made:
        return "cut off" if finish == "length" else "no call"
    if len(made) != len(names):
        return "wrong number of calls"
    orders = [o for o in itertools.permutations(made) if [name for name, _ in o] == names]
    if not orders:
        return "wrong tool"
    forms = {tool["function"]["name"]: tool["function"] for tool in question.tools}
    takes = {name: f.get("parameters", {}).get("properties", {}) for name, f in forms.items()}
    return RIGHT if any(_all_fit(order, question.calls, takes) for order in orders) else ARGUMENTS


def _all_fit(made: tuple, wanted: list[tuple[str, dict]], takes: dict) -> bool:
    pairs = zip(made, wanted, strict=True)
    return all(_fits(given, allowed, takes[name]) for (name, given), (_, allowed) in pairs)


def _fits(given: Any, allowed: dict, properties: dict) -> bool:
    """Whether each argument is as allowed, or its default; null stands for what is left out."""
    if not isinstance(given, dict):
        return False
    defaults = {name: [None, properties.get(name, {}).get("default")] for name in given}
    return all(
        any(_same(given.get(name), one) for one in (ways if isinstance(ways, list) else [ways]))
        for name, ways in (defaults | allowed).items()
    )


def _same(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return _fits(value, wanted, {})
    if isinstance(wanted, list):
        same = isinstance(value, list) and len(value) == len(wanted)
        return same and all(map(_same, value, wanted))
    # In Python True is 1, and in JSON it is not.
    return _plain(value) == _plain(wanted) and isinstance(value, bool) == isinstance(wanted, bool)


def _plain(value: Any) -> Any:
    return _IGNORED.sub("", value).casefold() if isinstance(value, str) else value


def _question(row: dict, offers: dict[str, dict]) -> Question:
    tools = [{"type": "function", "function": {"name": n, **offers[n]}} for n in row["tools"]]
    asked = [{"role": "user", "content": row["ask"]}] if "ask" in row else []
    calls = [(name, allowed) for call in row["calls"] for name, allowed in call.items()]
    messages = row.get("messages", []) + asked
    return Question(kind=row["kind"], messages=messages, tools=tools, calls=calls)
