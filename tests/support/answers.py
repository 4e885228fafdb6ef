"""What servers answer, as bytes: events, chunks, whole HTTP answers."""

import json


def event(delta: dict, finish: str | None = None, **more) -> bytes:
    """A streamed event as most servers write it."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    entry = {"id": "x", "choices": [choice], **more}
    return b"data: " + json.dumps(entry, separators=(",", ":")).encode() + b"\n\n"


def usage(value: str) -> bytes:
    """The event with the server's count."""
    return b'data: {"choices":[],"usage":%s}\n\n' % value.encode()


def count(tokens: int) -> bytes:
    """The usage as it should be."""
    return usage(f'{{"prompt_tokens":3,"completion_tokens":{tokens}}}')


def chunked(events: list[bytes]) -> bytes:
    """A whole answer, each event a chunk."""
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in events) + b"0\r\n\r\n"


def whole(body: bytes, status: str = "200 OK", *fields: str) -> bytes:
    """A whole answer of known length."""
    head = "\r\n".join([f"HTTP/1.1 {status}", *fields, f"content-length: {len(body)}", "", ""])
    return head.encode() + body


ROLE, WORD = event({"role": "assistant", "content": ""}), event({"content": "w"})
STOP = event({"content": ""}, "stop")
DONE = b"data: [DONE]\n\n"
GOOD = chunked([ROLE, WORD, WORD, STOP, count(2), DONE])
