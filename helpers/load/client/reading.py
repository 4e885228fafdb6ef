"""A finished exchange, read: its tokens and their times, usage, or the cause of its failure."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import repeat

import msgspec

from helpers.load.client.answer import Message, sse_events
from helpers.load.client.transport import Exchange

_START, _BETWEEN, _END = b"data: ", b"\n\ndata: ", b"\n\ndata: [DONE]\n\n"
_decode_lines = msgspec.json.Decoder().decode_lines


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
    events: list[dict] = field(default_factory=list, repr=False)

    def message(self) -> Message:
        """Put together what the assistant said."""
        message = Message()
        for event in self.events:
            for choice in event.get("choices") or ():
                message.add(choice.get("delta") or {})
        return message


def read(exchange: Exchange) -> Answer:
    """Read a finished exchange; whatever a server sent, this never fails.

    A token's time is that of the read which completed its event. An event with text counts as
    one token time, as the server sends one token an event unless it falls behind; how many tokens
    there were is what the server's ``usage`` says.
    """
    answer = Answer(cause=exchange.cause, error=exchange.error)
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


def _timed(exchange: Exchange) -> Iterable[tuple[float, dict | None]]:
    """Pair each event with the time of the read that completed it."""
    usual = _usual(exchange.pieces)
    if usual is not None:
        return zip(exchange.times, usual, strict=True)
    return ((exchange.times[index], event) for index, event in sse_events(exchange.pieces))


def _usual(pieces: list[bytes]) -> list[dict | None] | None:
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


def _take(answer: Answer, timed: Iterable[tuple[float, dict | None]]) -> tuple[str, str]:
    """Take events into the answer; return the cause of a failure that one of them tells of."""
    for time, event in timed:
        if event is None:
            answer.done = True
            continue
        answer.events.append(event)
        if event.get("error") or event.get("object") == "error":
            return "server error", json.dumps(event)[:300]
        if choices := event.get("choices"):
            choice = choices[0]
            delta = choice.get("delta") or {}
            if delta.get("content") or choice.get("text") or _says(delta):
                answer.token_times.append(time)
            answer.finish = choice.get("finish_reason") or answer.finish
        if usage := event.get("usage"):
            _count(answer, usage)
    return "", ""


def _says(delta: dict) -> bool:
    """Return whether a delta without text holds a thought, or a part of a call."""
    if delta.get("reasoning_content") or delta.get("reasoning"):
        return True
    functions = [wish.get("function") or {} for wish in delta.get("tool_calls") or ()]
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
