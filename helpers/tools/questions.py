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
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from helpers.errors import CourseError
from helpers.load.client.answer import Call, Message
from helpers.settings import ASSETS

QUESTIONS = ASSETS / "tool_questions.yaml"
RIGHT, REFUSED = "right", "server failed"
RIGHT_TOOL = (RIGHT, "not JSON", "argument left out", "argument too many", "wrong value")
# What can be wrong, in the order in which it is looked for.
CAUSES = (
    REFUSED, "needless call", "cut off", "no call", "a call is missing", "a call too many",
    "unknown tool", "wrong tool", "not JSON", "argument left out", "argument too many",
    "wrong value",
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
        """The calls expected, in one of the allowed ways."""
        return "; ".join(
            f"{name}({json.dumps(_first(allowed), ensure_ascii=False)})"
            for name, allowed in self.calls
        )


def read(path: str | Path = QUESTIONS) -> list[Question]:
    """Read questions from a YAML file; the head of the course's own explains the form.

    Raises:
        CourseError: the file cannot be read or has not that form.
    """
    try:
        source = yaml.safe_load(Path(path).read_text())
        tools, sets = source["tools"], source.get("sets", {})
        return [_question(row, tools, sets) for row in source["questions"]]
    except (OSError, yaml.YAMLError, LookupError, TypeError, AttributeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        hint = f"see the head of {QUESTIONS}"
        raise CourseError(f"{path} cannot be read as questions: {said}", hint) from None


def judge(question: Question, message: Message, finish: str = "") -> str:
    """Return ``right`` if the calls of a message are the expected ones, else what is wrong first.

    Args:
        question: what was asked.
        message: the model's answer.
        finish: the server's reason for its end.

    Returns:
        ``right``, or one of ``CAUSES``.
    """
    made = Counter(call.name for call in message.calls)
    wanted = Counter(name for name, _ in question.calls)
    if made == wanted:
        return _arguments(question, message.calls)
    if not wanted:
        return "needless call"
    if not made:
        return "cut off" if finish == "length" else "no call"
    if made < wanted or wanted < made:
        return "a call is missing" if made < wanted else "a call too many"
    offered = {tool["function"]["name"] for tool in question.tools}
    return "wrong tool" if made.keys() <= offered else "unknown tool"


def _arguments(question: Question, calls: list[Call]) -> str:
    """Compare the arguments, with the calls in the order in which they fit best."""
    given = []
    for call in calls:
        try:
            values = json.loads(call.arguments or "{}")
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            return "not JSON"
        given.append((call.name, values))
    offered = {tool["function"]["name"]: _properties(tool) for tool in question.tools}
    found = [
        [
            problem
            for (name, values), (_, allowed) in zip(order, question.calls, strict=True)
            for problem in _problems(values, allowed, offered[name])
        ]
        for order in itertools.permutations(given)
        if [name for name, _ in order] == [name for name, _ in question.calls]
    ]
    return (min(found, key=len) or [RIGHT])[0]


def _problems(given: dict, allowed: dict, properties: dict) -> list[str]:
    """Return the cause of whatever differs; null stands for what is left out."""
    found = []
    for name, values in allowed.items():
        options = _options(values)
        if given.get(name) is None:
            if None not in options:
                found.append("argument left out")
        elif not any(_same(given[name], option) for option in options):
            found.append("wrong value")
    for name in given.keys() - allowed.keys():
        default = properties.get(name, {}).get("default")
        if given[name] is not None and not _same(given[name], default):
            found.append("argument too many")
    return found


def _options(values: Any) -> list:
    return values if isinstance(values, list) else [values]


def _same(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return isinstance(value, dict) and not _problems(value, wanted, {})
    if isinstance(wanted, list):
        same = isinstance(value, list) and len(value) == len(wanted)
        return same and all(map(_same, value, wanted))
    if isinstance(wanted, str):
        return isinstance(value, str) and _letters(value) == _letters(wanted)
    # In Python True is 1, and in JSON it is not.
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


def _letters(text: str) -> str:
    return _IGNORED.sub("", text).casefold()


def _question(row: dict, offers: dict[str, dict], sets: dict[str, list]) -> Question:
    names = row["tools"] if isinstance(row["tools"], list) else sets[row["tools"]]
    functions = [{"name": name, **offers[name]} for name in names]
    tools = [{"type": "function", "function": function} for function in functions]
    asked = [{"role": "user", "content": row["ask"]}] if "ask" in row else []
    calls = [(name, allowed) for call in row["calls"] for name, allowed in call.items()]
    takes = {name: _properties(tool).keys() for name, tool in zip(names, tools, strict=True)}
    if not all(allowed.keys() <= takes[name] for name, allowed in calls):
        raise ValueError(f"{row['kind']}: a call has arguments that its tool does not take")
    json.dumps(calls)  # a TypeError tells of a date without quotes
    messages = row.get("messages", []) + asked
    return Question(kind=row["kind"], messages=messages, tools=tools, calls=calls)


def _properties(tool: dict) -> dict:
    """The arguments of a tool's definition, which may have none."""
    return (tool["function"].get("parameters") or {}).get("properties") or {}


def _first(allowed: Any) -> Any:
    """Return the first of the allowed values, all the way down."""
    if isinstance(allowed, dict):
        given = {
            name: [value for value in _options(values) if value is not None]
            for name, values in allowed.items()
        }
        return {name: _first(values[0]) for name, values in given.items() if values}
    return [_first(one) for one in allowed] if isinstance(allowed, list) else allowed
