"""A finished exchange, read: its tokens and their times, usage, or the cause of its failure."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import msgspec

from helpers.load.client.answer import Message, sse_events
from helpers.load.client.transport import Exchange

_START, _BETWEEN, _END = b"data: ", b"\n\ndata: ", b"\n\ndata: [DONE]\n\n"


class _Delta(msgspec.Struct):
    content: Any = None
    reasoning: Any = None
    reasoning_content: Any = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: Any = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    """What is needed of an event; the rest is passed over, not decoded."""

    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None
    object: Any = None
    message: Any = None


_decode_lines = msgspec.json.Decoder(_Event).decode_lines


@dataclass(slots=True)
class Answer:
    """One answer; times are ``time.perf_counter`` seconds, the rest as in ``helpers.records``."""

    token_times: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    counted: bool = False  # by the server, in its usage
    finish: str = ""
    done: bool = False  # it ended with ``[DONE]``
    cause: str = ""
    error: str = ""
    pieces: list[bytes] = field(default_factory=list, repr=False)

    def message(self) -> Message:
        """Put together what the assistant said."""
        message = Message()
        for _, event in sse_events(self.pieces):
            for choice in (event or {}).get("choices") or ():
                message.add(choice.get("delta") or {})
        return message


def read(exchange: Exchange) -> Answer:
    """Read a finished exchange; whatever a server sent, this never fails.

    A token's time is that of the read which completed its event. An event with text counts as
    one token time, as the server sends one token an event unless it falls behind; how many tokens
    there were is what the server's ``usage`` says.
    """
    answer = Answer(cause=exchange.cause, error=exchange.error, pieces=exchange.pieces)
    if exchange.status not in (0, 200):
        words = exchange.body[:300].decode("utf-8", "replace").strip()
        answer.cause = answer.cause or f"http {exchange.status}"
        answer.error = answer.error or words or answer.cause
        return answer
    problem = ("malformed", "")
    try:
        problem = _take(answer, _timed(exchange))
    except ValueError as error:
        problem = "malformed", str(error)
    except (AttributeError, LookupError, TypeError) as error:
        problem = "malformed", f"not an event of a chat completion: {error!r}"
    if not answer.counted:
        answer.output_tokens = len(answer.token_times)  # a lower bound
    if not answer.cause:
        answer.cause, answer.error = problem if problem[0] else _shortcoming(answer)
    return answer


def _timed(exchange: Exchange) -> Iterable[tuple[float, _Event | None]]:
    """Pair each event with the time of the read that completed it."""
    usual = _usual(exchange.pieces)
    if usual is not None:
        return zip(exchange.times, usual, strict=True)
    return (
        (exchange.times[index], None if event is None else msgspec.convert(event, _Event))
        for index, event in sse_events(exchange.pieces)
    )


def _usual(pieces: list[bytes]) -> list[_Event | None] | None:
    """Return the events of a stream each of whose pieces is one event, else ``None``.

    Nearly every stream is like this. All its JSON is then read at once, in half the time.
    """
    body = b"".join(pieces)
    if not (body.startswith(_START) and body.endswith(_END)):
        return None
    try:
        events = _decode_lines(body[len(_START) : -len(_END)].replace(_BETWEEN, b"\n"))
    except (ValueError, RecursionError):
        return None
    whole = len(events) + 1 == len(pieces) and all(map(bytes.endswith, pieces, repeat(b"\n\n")))
    return [*events, None] if whole else None


def _take(answer: Answer, timed: Iterable[tuple[float, _Event | None]]) -> tuple[str, str]:
    """Take events into the answer; return the cause of a failure that one of them tells of."""
    for time, event in timed:
        if event is None:
            answer.done = True
            continue
        if event.error or event.object == "error":
            return "server error", json.dumps(event.error or event.message)[:300]
        if event.choices:
            choice = event.choices[0]
            delta = choice.delta
            if choice.text or (delta is not None and (delta.content or _says(delta))):
                answer.token_times.append(time)
            answer.finish = choice.finish_reason or answer.finish
        if event.usage:
            _count(answer, event.usage)
    return "", ""


def _says(delta: _Delta) -> bool:
    """Return whether a delta without text holds a thought, or a part of a call."""
    if delta.reasoning_content or delta.reasoning:
        return True
    functions = [wish.get("function") or {} for wish in delta.tool_calls or ()]
    return any(function.get("arguments") for function in functions)


def _count(answer: Answer, usage: object) -> None:
    output = _number(usage, "completion_tokens")
    if output is not None and isinstance(usage, dict):
        answer.output_tokens, answer.counted = output, True
        answer.prompt_tokens = _number(usage, "prompt_tokens") or 0
        details = usage.get("prompt_tokens_details")
        answer.cached_tokens = _number(details, "cached_tokens") or 0


def _number(counts: object, name: str) -> int | None:
    value = counts.get(name) if isinstance(counts, dict) else None
    return value if type(value) is int and value >= 0 else None  # no bool


def _shortcoming(answer: Answer) -> tuple[str, str]:
    """Return why an answer that arrived whole, event by event, is not a good one."""
    if answer.finish == "error":
        return "server error", "the finish reason is an error"
    if not answer.finish and not answer.done:
        return "malformed", "the stream ended without a finish reason"
    if not answer.token_times and not (answer.counted and answer.finish):
        return "malformed", "the stream holds no answer"
    return "", ""
