"""A finished exchange, read: its tokens and their times, usage, or the cause of its failure."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from helpers.load.client.answer import Message, sse_events
from helpers.load.client.transport import Exchange


class _Delta(msgspec.Struct, gc=False):
    content: Any = None
    reasoning: Any = None
    reasoning_content: Any = None
    tool_calls: Any = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    text: Any = None
    finish_reason: str | None = None


class _Event(msgspec.Struct, gc=False):
    """What is needed of an event; the rest is passed over, not decoded."""

    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None
    message: Any = None


_decode = msgspec.json.Decoder(_Event).decode


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
        if exchange.status in range(300, 400):
            words = f"redirect to {exchange.headers.get('location', 'nowhere')}"
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


def _timed(exchange: Exchange) -> Iterator[tuple[float, _Event | None]]:
    """Yield each event with the time of the read that completed it, ``None`` for ``[DONE]``."""
    pieces, body = exchange.pieces, exchange.body
    whole = body.startswith(b"data: {") and body.endswith(b"}\n\ndata: [DONE]\n\n")
    if whole and body.count(b"}\n\ndata: ") == len(pieces) - 1:
        with suppress(ValueError, RecursionError):  # nearly always each piece is an event
            events = [_decode(piece[6:-2]) for piece in pieces[:-1]]
            return zip(exchange.times, [*events, None], strict=True)
    return (
        (exchange.times[index], None if event is None else msgspec.convert(event, _Event))
        for index, event in sse_events(pieces)
    )


def _take(answer: Answer, timed: Iterator[tuple[float, _Event | None]]) -> tuple[str, str]:
    """Take events into the answer; return the cause of a failure that one of them tells of."""
    for time, event in timed:
        if event is None:
            answer.done = True
            continue
        if event.error or event.message:
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
