"""What the bytes of an answer meant: tokens and their times, usage, or the cause of a failure."""

import json
from dataclasses import dataclass
from itertools import compress, repeat
from operator import add

from helpers.load.client.http1 import ProtocolError
from helpers.load.client.wire import CHUNKED_HEAD, STREAM_END, Exchange

# Keys of a delta that carry text. An unescaped `"content":"` cannot occur inside a JSON string, so
# counting it in the raw bytes is exact, and ten times cheaper than reading the JSON.
_KEYS = ("content", "reasoning_content", "reasoning", "text", "arguments")
_ERROR = b'"error"'  # likewise a key or a whole value, wherever it stands


@dataclass(slots=True)
class Reply:
    """One answer, read. Times are ``time.perf_counter`` seconds; see ``helpers.records``."""

    token_times: list[float]
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    counted: bool = False  # by the server, in its usage
    finish: str = ""
    cause: str = ""
    error: str = ""


def read(exchange: Exchange) -> Reply:
    """Read a finished exchange.

    A token's time is that of the read which completed its line. A streamed piece of text counts
    as one token time, as the server sends one token a piece unless it falls behind; how many
    tokens there were is what the server's ``usage`` says.
    """
    reply = Reply([], cause=exchange.cause, error=exchange.error)
    usual = _usual_stream(exchange)
    times, payloads, body, events = usual or _unframed(exchange, reply)
    reply.token_times = _token_times(times, payloads, body, events)
    _read_usage(reply, body)
    at = body.rfind(b'"finish_reason":')
    finish = body[at + 16 : at + 40].strip(b' "').partition(b'"')[0]
    if at >= 0 and not finish.startswith(b"null"):
        reply.finish = finish.decode("ascii", "replace")
    if usual and reply.counted and reply.token_times:
        return reply
    if usual:  # only at first sight
        body = _unframed(exchange, reply)[2]
    if not reply.cause:
        _judge(reply, exchange, body.splitlines())
    return reply


def message(exchange: Exchange) -> dict:
    """Return the assistant's message of a good answer, put together from its pieces.

    Raises:
        ValueError: the pieces are not those of an answer.
    """
    text, calls = [], {}
    try:
        body = b"".join([payload for _, payload in exchange.pieces()])
        for line in body.splitlines():
            if not line.startswith(b"data:") or line.endswith(b"[DONE]"):
                continue
            for choice in json.loads(line[5:]).get("choices") or ():
                delta = choice.get("delta") or {}
                text.append(delta.get("content") or "")
                for part in delta.get("tool_calls") or ():
                    call = calls.setdefault(part["index"], {"type": "function", "function": {}})
                    call["id"] = part.get("id") or call.get("id")
                    for key, value in part.get("function", {}).items():
                        call["function"][key] = call["function"].get(key, "") + (value or "")
        whole = {"role": "assistant", "content": "".join(text)}
    except (ProtocolError, AttributeError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"not an answer: {error!r}") from None
    return whole | ({"tool_calls": list(calls.values())} if calls else {})


def _unframed(exchange: Exchange, reply: Reply) -> tuple[list[float], list[bytes], bytes, int]:
    """Return times, payloads, all of them joined, and the number of events."""
    times, payloads = [], []
    try:
        for time, payload in exchange.pieces():
            times.append(time)
            payloads.append(payload)
    except ProtocolError as error:
        reply.cause, reply.error = reply.cause or "malformed", reply.error or str(error)
    body = b"".join(payloads)
    return times, payloads, body, body.count(b"data:")


def _usual_stream(exchange: Exchange) -> tuple[list[float], list[bytes], bytes, int] | None:
    """Return times, reads, all of them joined, and the number of events; else ``None``.

    The chunk sizes are left in, if that cannot matter.

    It cannot when each chunk is one event, each event is ``data: {...}``, and the stream ends as
    it should: nearly every answer. A few searches in C then stand for taking the framing off
    chunk by chunk and judging line by line, which cost more than all else.
    """
    if exchange.cause or not exchange.framed or not exchange.reads:
        return None
    head = CHUNKED_HEAD.match(exchange.reads[0])
    if not head:
        return None
    first, times, reads = exchange.reads[0][head.end() :], exchange.times, exchange.reads[1:]
    times, reads = (times, [first, *reads]) if first else (times[1:], reads)
    body = b"".join(reads)
    events = body.count(b"data: {")
    if not (
        body.endswith(STREAM_END)
        and body.count(b"}\n\n\r\n") == events
        and body.count(b"\n") == 4 * (events + 1) + 2  # two ends of line of the event, two of the
        and _ERROR not in body  # chunk; with [DONE], and the last chunk's
    ):
        return None
    exchange.status = 200
    return times, reads, body, events + 1


def _token_times(
    times: list[float], payloads: list[bytes], body: bytes, events: int
) -> list[float]:
    if not all(map(bytes.endswith, payloads, repeat(b"\n"))):
        payloads = list(_whole_lines(payloads))
    counts = _texts(payloads, body, events)
    if max(counts, default=0) <= 1:
        return list(compress(times, counts))
    return [time for n, time in zip(counts, times, strict=True) for _ in range(n)]


def _whole_lines(payloads: list[bytes]):
    """Yield the payloads cut at ends of lines: a line belongs to the read that completes it."""
    rest = b""
    for payload in payloads:
        data = rest + payload
        cut = data.rfind(b"\n") + 1
        rest = data[cut:]
        yield data[:cut]


def _texts(payloads: list[bytes], body: bytes, events: int) -> list[int]:
    """Count the pieces of text that came with each payload."""
    space = b" " if b'"choices": ' in body[:2048] else b""
    counts, unexplained, total = [0] * len(payloads), events, 0
    for name in _KEYS:
        if name == "reasoning" and total:  # the same text under both names, as vLLM sends it
            continue
        key = b'"%s":%s"' % (name.encode(), space)
        found = list(map(bytes.count, payloads, repeat(key)))
        if total := sum(found):
            empty = key + b'"'
            first, later = payloads[0].count(empty), body.count(empty, len(payloads[0]))
            found[0] -= first  # the role comes with an empty text, at the start
            # Further empty ones, but for the one with the finish, accompany text of another key.
            unexplained += max(0, first + later - 2)
            if later:
                found[1:] = [
                    n and n - p.count(empty) for n, p in zip(found[1:], payloads[1:], strict=True)
                ]
            counts = list(map(add, counts, found))
        unexplained -= total
        if unexplained < 4:  # the role, the finish, usage and [DONE]
            break
    return counts


def _read_usage(reply: Reply, body: bytes) -> None:
    reply.output_tokens = len(reply.token_times)  # what is known without usage, a lower bound
    at = len(body)
    while (at := body.rfind(b'"usage"', 0, at)) >= 0:
        line = body[body.rfind(b"\n", 0, at) + 1 : body.find(b"\n", at)]
        try:
            usage = json.loads(line.removeprefix(b"data:").decode())["usage"]
        except (ValueError, LookupError, TypeError):
            continue
        output = _count(usage, "completion_tokens")
        if output is not None:
            reply.output_tokens, reply.counted = output, True
            reply.prompt_tokens = _count(usage, "prompt_tokens") or 0
            details = usage.get("prompt_tokens_details")
            reply.cached_tokens = _count(details, "cached_tokens") or 0
            return


def _count(counts: object, name: str) -> int | None:
    value = counts.get(name) if isinstance(counts, dict) else None
    return value if type(value) is int and value >= 0 else None  # no bool


def _judge(reply: Reply, exchange: Exchange, lines: list[bytes]) -> None:
    """Find the cause of failure in an answer that arrived whole."""
    if exchange.status != 200:
        text = b"\n".join(lines)[:300].decode("utf-8", "replace").strip()
        reply.cause = f"http {exchange.status}"
        reply.error = text or reply.cause
        return
    done, sound = False, reply.counted and reply.token_times  # else each event's JSON is read
    for line in lines:
        if sound and line.startswith(b"data: {") and line.endswith(b"}") and _ERROR not in line:
            continue  # what nearly every line is
        text = line[:300].decode("utf-8", "replace")
        name, _, value = line.partition(b":")
        value = value.strip()
        done |= value == b"[DONE]"
        event = _event(value) if name in (b"data", b"error") and value != b"[DONE]" else {}
        if event and (event.get("error") or event.get("object") == "error"):
            reply.cause, reply.error = "server error", text
            return
        if name == b"data" and event is None:
            reply.cause, reply.error = "malformed", f"not an event: {text[:80]!r}"
            return
        if line and name not in (b"data", b"event", b"id", b"retry", b"error", b""):
            reply.cause, reply.error = "malformed", f"not a stream of events: {text[:80]!r}"
            return
    if reply.finish == "error":
        reply.cause, reply.error = "server error", "the finish reason is an error"
    elif not reply.finish and not done:
        reply.cause, reply.error = "malformed", "the stream ended without a finish reason"
    elif not reply.token_times and not (reply.counted and reply.finish):
        reply.cause, reply.error = "malformed", "the stream holds no answer"


def _event(value: bytes) -> dict | None:
    try:
        event = json.loads(value.decode())
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
