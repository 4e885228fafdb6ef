"""A finished exchange, read: its tokens and their times, usage, or the cause of its failure."""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from helpers.load.client.answer import Delta, Message, numbered, sse_events
from helpers.load.client.transport import Exchange


class _Choice(msgspec.Struct, gc=False):
    delta: Delta | None = None
    message: Any = None  # of an answer that is not streamed
    finish_reason: str | None = None


class _Event(msgspec.Struct, gc=False):
    """What is needed of an event; the rest is passed over, not decoded."""

    choices: tuple[_Choice, ...] | None = None
    usage: Any = None
    error: Any = None
    message: Any = None


_Timed = Iterable[tuple[float, _Event | None]]  # ``None`` is the stream's ``[DONE]``
_decode = msgspec.json.Decoder(list[_Event]).decode


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
    deltas: list[Delta] = field(default_factory=list, repr=False)

    def message(self) -> Message:
        """Put together what the assistant said."""
        return Message(self.deltas)


def read(exchange: Exchange) -> Answer:
    """Read a finished exchange; whatever a server sent, this never fails.

    A token's time is that of the read which completed its event. An event with text counts as
    one token time, as the server sends one token an event unless it falls behind; how many tokens
    there were is what the server's ``usage`` says.
    """
    answer = Answer(cause=exchange.cause, error=exchange.error)
    if exchange.status not in (0, 200):
        words = exchange.body[:300].decode("utf-8", "replace").strip()
        if exchange.status in range(300, 400):
            words = f"redirect to {exchange.headers.get('location', 'nowhere')}"
        answer.cause = answer.cause or f"http {exchange.status}"
        answer.error = answer.error or words or answer.cause
        return answer
    try:
        timed = _at_once(exchange) or _one_by_one(exchange)
        problem = _take(answer, timed) or _shortcoming(answer)
    except ValueError as error:
        problem = "malformed", str(error)
    except (AttributeError, LookupError, TypeError, RecursionError) as error:
        problem = "malformed", f"not an event of a chat completion: {error!r}"
    if not answer.output_tokens:  # some servers count nothing, or 0 of a text
        answer.output_tokens = len(answer.token_times)  # a lower bound
    if not answer.cause:
        answer.cause, answer.error = problem
    return answer


def _at_once(exchange: Exchange) -> _Timed | None:
    """Decode a stream whose pieces are an event each, as nearly all are.

    Of pieces that are cut otherwise, or are more than ``data:`` and a line of JSON, this leaves no
    JSON, or fewer values than pieces: no string of JSON holds a raw line break.
    """
    *pieces, last = exchange.pieces or [b""]
    if last.strip() == b"data: [DONE]":
        with suppress(ValueError, RecursionError):
            events = _decode(b"[" + b",".join([piece[5:-2] for piece in pieces]) + b"]")
            if len(events) == len(pieces):
                return zip(exchange.times, [*events, None], strict=True)
    return None


def _one_by_one(exchange: Exchange) -> _Timed:
    """Find the events of any stream; an answer that is not streamed is one event."""
    if exchange.body.startswith(b"{"):
        whole = msgspec.convert(json.loads(exchange.body), _Event)
        for choice in whole.choices or ():
            choice.delta = numbered(choice.message)
        yield from zip(exchange.times[-1:] * 2, (whole, None), strict=True)
        return
    for index, event in sse_events(exchange.pieces):
        yield exchange.times[index], None if event is None else msgspec.convert(event, _Event)


def _take(answer: Answer, timed: _Timed) -> tuple[str, str] | None:
    """Take events into the answer; return the cause of a failure that one of them tells of."""
    token, keep = answer.token_times.append, answer.deltas.append
    for time, event in timed:
        if event is None:
            answer.done = True
            continue
        if event.error or (event.message and not event.choices):
            return "server error", json.dumps(event.error or event.message)[:300]
        if event.choices:
            choice = event.choices[0]
            if (delta := choice.delta) is not None:  # what stands beside it repeats it
                keep(delta)
                if delta.content or _says(delta):
                    token(time)
            if choice.finish_reason:
                answer.finish = choice.finish_reason
        if event.usage:
            _count(answer, event.usage)
    return None


def _says(delta: Delta) -> bool:
    """Return whether a delta without text holds a thought, a refusal, or a part of a call."""
    if delta.reasoning_content or delta.reasoning or delta.refusal:
        return True
    functions = [wish.get("function") or {} for wish in delta.tool_calls or ()]
    return any(function.get("arguments") for function in functions)


def _count(answer: Answer, usage: object) -> None:
    if isinstance(usage, dict):
        output = _number(usage, "completion_tokens")
        answer.counted = answer.counted or output is not None
        answer.output_tokens = output or answer.output_tokens  # some end with a count of 0
        answer.prompt_tokens = _number(usage, "prompt_tokens") or answer.prompt_tokens
        details = usage.get("prompt_tokens_details")
        answer.cached_tokens = _number(details, "cached_tokens") or answer.cached_tokens


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
