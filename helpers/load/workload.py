"""What is asked: synthetic prompts, given prompts or chats, questions for tools."""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from helpers.errors import CourseError, above_zero

# Everyday words: one token each, with the space before, in the usual vocabularies.
_WORDS = """
time year people way day man thing woman life child world school state family student group country
problem hand part place case week company system program question work government number night point
home water room mother area money story fact month lot right study book eye job word business issue
side kind head house service friend father power hour game line end member law car city community
name president team minute idea body information back parent face others level office door health
person art war history party result change morning reason research girl guy moment air teacher force
education
""".split()  # noqa: SIM905


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """A number of tokens drawn anew each time, cut to a range.

    The distribution is lognormal, as lengths in real traffic nearly are: many short, a few long.

    Args:
        mean: in tokens, before cutting.
        stdev: in tokens; 0 gives the mean each time.
        min: smallest length.
        max: largest length; ``None`` is no limit.
    """

    mean: float
    stdev: float = 0.0
    min: int = 1
    max: int | None = None

    def __post_init__(self) -> None:
        if not self.mean > 0 or self.stdev < 0 or not 1 <= self.min <= (self.max or self.min):
            raise CourseError(f"no length is like {self!r}", "mean above 0, 1 <= min <= max")

    def draw(self, chance: random.Random) -> int:
        """Return one length."""
        variance = math.log1p((self.stdev / self.mean) ** 2)
        drawn = chance.lognormvariate(math.log(self.mean) - variance / 2, variance**0.5)
        length = max(self.min, round(drawn))
        return length if self.max is None else min(length, self.max)


@dataclass(frozen=True, kw_only=True)
class Chat:
    """What one customer says, as OpenAI chat messages.

    Args:
        opening: messages before the first turn.
        turns: what the customer says and the most tokens of its answer, a request each.
        tools: OpenAI tool definitions sent with each request.
    """

    opening: Sequence[dict] = ()
    turns: Sequence[tuple[dict, int]]
    tools: Sequence[dict] = ()


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What all workloads can say of the answers.

    Args:
        temperature: 0 is greedy.
        cap_field: the request's field for the most tokens of an answer; OpenAI's reasoning models
            want ``"max_completion_tokens"``, and a temperature of 1.
    """

    temperature: float = 0.0
    cap_field: str = "max_tokens"


@dataclass(frozen=True, kw_only=True)
class Synthetic(Sampling):
    """Random prompts of given lengths, the same ones for the same seed; see also ``Sampling``.

    Args:
        input_tokens: of each prompt, a number, ``Lengths``, or the lengths of all in order (of a
            trace, see ``Replay``), from the start again at their end. The server's chat template
            adds its own; the records hold the server's count. By default lengths vary by half,
            as those of customers do: equal ones keep in step, and look faster than they would be.
        output_tokens: of each answer, likewise.
        turns: requests in a chat; each carries the history of the ones before.
        shared_prefix_tokens: length of a system message that all chats share, so that a
            server with prefix caching can show it.
        ignore_eos: ask for exactly ``output_tokens`` where the server knows how (vLLM, llama.cpp,
            SGLang).
        seed: of lengths and words.

    >>> work = Synthetic(input_tokens=4, output_tokens=16)
    >>> work.chat(0) == work.chat(0) != work.chat(1)
    True
    """

    input_tokens: int | Lengths | Sequence[int] = Lengths(mean=128, stdev=64)
    output_tokens: int | Lengths | Sequence[int] = Lengths(mean=64, stdev=32)
    turns: int = 1
    shared_prefix_tokens: int = 0
    ignore_eos: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("input_tokens", "output_tokens", "turns"):
            if not isinstance(value := getattr(self, name), Lengths):
                least = min(value, default=0) if isinstance(value, Sequence) else value
                above_zero(**{name: least})

    def chat(self, index: int) -> Chat:
        """Return chat number ``index``."""
        chance, opening, turns = _chance(self.seed, index), [], []
        if self.shared_prefix_tokens:
            prefix = _text(_chance(self.seed, -1), self.shared_prefix_tokens)
            opening = [{"role": "system", "content": prefix}]
        for _ in range(self.turns):
            text = _text(chance, _draw(self.input_tokens, chance, index))
            cap = _draw(self.output_tokens, chance, index)
            turns.append(({"role": "user", "content": text}, cap))
        return Chat(opening=opening, turns=turns)


@dataclass(frozen=True, kw_only=True)
class Prompts(Sampling):
    """Given prompts or chats, taken in order and from the start again; see also ``Sampling``.

    Args:
        items: each a string (a prompt) or a list of chat messages; the user's messages become
            the turns, earlier answers are the server's own.
        output_tokens: cap of each answer; with ``ignore_eos`` its exact length.
        tools: OpenAI tool definitions sent with each request.
        ignore_eos: ask for exactly ``output_tokens``, where the server knows how.
    """

    items: Sequence[str | list[dict]]
    output_tokens: int = 256
    tools: Sequence[dict] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if not self.items:
            raise CourseError("there are no prompts", "give at least one")
        for number, item in enumerate(self.items):
            try:
                asked = bool(self.chat(number).turns)
            except (AttributeError, TypeError):
                asked = False
            if not asked:
                hint = "a prompt is a string or a list of chat messages, one of them the user's"
                raise CourseError(f"this is no prompt: {str(item)[:60]!r}", hint)

    def chat(self, index: int) -> Chat:
        """Return chat number ``index``."""
        item = self.items[index % len(self.items)]
        messages = [{"role": "user", "content": item}] if isinstance(item, str) else item
        opening = [one for one in messages if one.get("role") in ("system", "developer")]
        turns = [(one, self.output_tokens) for one in messages if one.get("role") == "user"]
        return Chat(opening=opening, turns=turns, tools=list(self.tools))


@dataclass(frozen=True, kw_only=True)
class ToolCalls(Sampling):
    """Questions that a model should answer with a call, new values in each; see also ``Sampling``.

    Args:
        asks: questions, drawn by chance; ``{number}`` (five digits), ``{count}`` (2 to 9) and
            ``{word}`` in them are drawn anew each time, so that no prompt is asked twice.
        tools: OpenAI tool definitions sent with each request.
        output_tokens: cap of each answer.
        seed: of questions and values.

    >>> tools = ({"type": "function", "function": {"name": "track_parcel"}},)
    >>> work = ToolCalls(asks=("Where is parcel {number}?",), tools=tools)
    >>> work.chat(0).turns
    [({'role': 'user', 'content': 'Where is parcel 65125?'}, 96)]
    """

    asks: Sequence[str]
    tools: Sequence[dict]
    output_tokens: int = 96
    seed: int = 0
    ignore_eos = False  # a call ends where it ends

    def __post_init__(self) -> None:
        if not (self.asks and self.tools):
            raise CourseError("there are no questions or no tools", "give at least one of each")
        try:
            for ask in self.asks:
                _filled(ask, _chance(0, 0))
        except (LookupError, ValueError, AttributeError):
            hint = "use {number}, {count} and {word}; write {{ and }} for braces"
            raise CourseError(f"this question cannot be filled in: {ask!r}", hint) from None

    def chat(self, index: int) -> Chat:
        """Return chat number ``index``."""
        chance = _chance(self.seed, index)
        text = _filled(chance.choice(self.asks), chance)
        turn = {"role": "user", "content": text}, self.output_tokens
        return Chat(turns=[turn], tools=list(self.tools))


Workload = Synthetic | Prompts | ToolCalls


def unseen(work: Workload, load: float) -> Workload:
    """Return the workload with new prompts for each load: those seen are in the prefix cache."""
    if isinstance(work, Prompts):
        return work
    return replace(work, seed=work.seed + int(1e6 * load))


def to_spec(value: Any) -> dict:
    """Return a workload, or arrivals, as plain JSON values."""
    return {"kind": type(value).__name__, **asdict(value)}


def body(
    work: Workload, model: str, tools: Sequence, messages: list, max_tokens: int, exact: bool
) -> bytes:
    """Return the body of a streaming chat completion; ``exact``: the server can fix its length."""
    fields: dict[str, Any] = {
        "model": model,
        "messages": messages,
        work.cap_field: max_tokens,
        "temperature": work.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if tools:
        fields["tools"] = tools
    if work.ignore_eos and exact:
        fields |= {"ignore_eos": True, "min_tokens": max_tokens}
    return json.dumps(fields).encode()


def _filled(ask: str, chance: random.Random) -> str:
    number, count = chance.randrange(10_000, 100_000), chance.randint(2, 9)
    return ask.format(number=number, count=count, word=chance.choice(_WORDS))


def _chance(seed: int, index: int) -> random.Random:
    return random.Random(seed * 1_000_003 + index)  # noqa: S311


def _text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(_WORDS, k=words))


def _draw(length: int | Lengths | Sequence[int], chance: random.Random, index: int) -> int:
    if isinstance(length, Sequence):
        return length[index % len(length)]
    return length.draw(chance) if isinstance(length, Lengths) else length
