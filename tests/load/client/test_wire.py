"""The lean transport against h11 on random streams, and against a server that misbehaves."""

import asyncio

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.load.client import stream
from helpers.load.client.general import GeneralTransport
from helpers.load.client.http1 import ProtocolError, Response
from helpers.load.client.wire import Exchange, PlainTransport

PAYLOAD = st.lists(
    st.binary(max_size=60) | st.sampled_from([b"\r\n", b"0\r\n\r\n", b"\r\n0\r\n\r\n"])
)
STATUS = st.sampled_from([200, 204, 304, 404, 429, 500])
BREAKS = st.lists(st.integers(1, 40), max_size=60)


def by_h11(raw: bytes) -> tuple[int, bytes]:
    """Status and payload as h11 reads them."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "h")]))
    client.send(h11.EndOfMessage())
    client.receive_data(raw)
    status, payload = 0, b""
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            client.receive_data(b"")
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            payload += event.data
        elif isinstance(event, h11.EndOfMessage):
            return status, payload


def cut(raw: bytes, lengths: list[int]):
    """The bytes in pieces of given lengths, the rest at the end."""
    for length in lengths:
        yield raw[:length]
        raw = raw[length:]
    yield raw


def answer(parts: list[bytes], framing: str, status: int) -> bytes:
    """An HTTP answer that h11 itself writes, so that both readers get what a server may send."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
    while not isinstance(server.next_event(), h11.EndOfMessage):
        pass
    length = str(sum(map(len, parts)))
    headers = {
        "chunked": [("Transfer-Encoding", "chunked")],
        "counted": [("Content-Length", length)],
        "until close": [("Connection", "close")],
    }[framing]
    raw = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" if status == 429 else b""
    if framing == "until close":  # h11's server would rather chunk
        return raw + b"HTTP/1.1 %d OK\r\nConnection: close\r\n\r\n" % status + b"".join(parts)
    raw += server.send(h11.Response(status_code=status, headers=headers))
    if status not in (204, 304):
        for part in parts:
            raw += server.send(h11.Data(data=part)) or b""
    return raw + (server.send(h11.EndOfMessage()) or b"" if status not in (204, 304) else b"")


@settings(max_examples=300, deadline=None)
@given(PAYLOAD, st.sampled_from(["chunked", "counted", "until close"]), STATUS, BREAKS)
def test_reads_what_h11_reads(parts, framing, status, breaks):
    """Wherever the reads cut the bytes, status and payload are those that h11 finds."""
    if status in (204, 304) and framing == "until close":
        parts = []
    raw = answer(parts, framing, status)
    response, payload = Response(), b""
    for piece in cut(raw, breaks):
        payload += response.feed(piece)
    assert response.done or (framing == "until close" and response.eof())
    assert (response.status, payload) == by_h11(raw)
    assert not response.rest


@settings(max_examples=200, deadline=None)
@given(PAYLOAD, BREAKS, st.integers(0, 400))
def test_a_cut_answer_is_never_taken_for_whole(parts, breaks, keep):
    """A chunked answer that lacks its end is not done, whatever its payload looks like."""
    raw = answer(parts, "chunked", 200)
    raw = raw[: min(keep, len(raw) - 1)]
    response = Response()
    for piece in cut(raw, breaks):
        response.feed(piece)
    assert not response.done and not response.eof()


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
    ],
)
def test_nonsense_is_refused(raw):
    """Bytes that are not HTTP raise, they do not hang."""
    with pytest.raises(ProtocolError):
        Response().feed(raw)


EVENT = b'data: {"choices":[{"delta":{"content":"%s"},"finish_reason":null}]}\n\n'
BODY = (
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
    + b"".join(EVENT % word for word in (b"a", b'\\"content\\":\\"x', b"", b"c"))
    + b'data: {"choices":[{"delta":{},"finish_reason":"length"}]}\n\n'
    + b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n'
    + b"data: [DONE]\n\n"
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 200), max_size=20) | st.none(), BREAKS)
def test_tokens_are_found_wherever_the_cuts_are(chunks, breaks):
    """Chunk and read boundaries anywhere, text that looks like a key: three pieces of text."""
    events = [event + b"\n\n" for event in BODY.split(b"\n\n") if event]
    parts = events if chunks is None else [part for part in cut(BODY, chunks) if part]
    exchange = Exchange()
    for number, piece in enumerate(cut(answer(parts, "chunked", 200), breaks)):
        exchange.reads.append(piece)
        exchange.times.append(float(number))
    reply = stream.read(exchange)
    assert (reply.cause, reply.error, reply.finish) == ("", "", "length")
    assert len(reply.token_times) == 3 and reply.token_times == sorted(reply.token_times)
    assert (reply.prompt_tokens, reply.output_tokens) == (3, 4)
    assert stream.message(exchange)["content"] == 'a"content":"xc'


@pytest.fixture
async def serve():
    """Start servers that answer each connection with a given coroutine; yields the starter."""
    servers = []

    async def start(handle) -> str:
        async def safely(reader, writer):
            try:
                await handle(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        servers.append(await asyncio.start_server(safely, "127.0.0.1", 0))
        return f"http://127.0.0.1:{servers[-1].sockets[0].getsockname()[1]}/v1"

    yield start
    for server in servers:
        server.close()


async def request(reader) -> bytes:
    """Read one request."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
    return head + await reader.readexactly(length)


HEAD = len(answer([], "chunked", 200).partition(b"\r\n\r\n")[0]) + 4


@pytest.mark.parametrize("cuts", [[70, 100, 50], [HEAD, 9, 90], [HEAD - 2, 2], [HEAD + 1]])
@pytest.mark.parametrize("kind", [PlainTransport, GeneralTransport])
async def test_both_transports_agree(serve, kind, cuts):
    """The lean and the general transport give the same reply for the same bytes."""

    async def handle(reader, writer):
        while await request(reader):
            for piece in cut(answer([BODY[:99], BODY[99:]], "chunked", 200), cuts):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.01)

    transport = kind(await serve(handle), {"X-Test": "1"}, 5.0)
    for _ in range(3):
        exchange = await transport.fetch(transport.prepare("/chat/completions", b"{}"))
        reply = stream.read(exchange)
        assert (reply.cause, exchange.status, reply.output_tokens) == ("", 200, 4)
        assert exchange.sent < exchange.times[0] <= reply.token_times[0] <= exchange.end
    await transport.close()


@pytest.mark.parametrize("kind", [PlainTransport, GeneralTransport])
@pytest.mark.parametrize(
    ("raw", "cause"),
    [
        (b"", "closed early"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel", "closed early"),
        (b"HTTP/1.1 503 Busy\r\nretry-after: 2\r\ncontent-length: 4\r\n\r\nbusy", "http 503"),
        (b"gibberish\r\n\r\n", "malformed"),
        (None, "timeout"),
    ],
)
async def test_failures_are_told_apart(serve, kind, raw, cause):
    """Each way to fail has its cause, on both transports."""

    async def handle(reader, writer):
        await request(reader)
        if raw is None:
            await asyncio.sleep(1)
        else:
            writer.write(raw)
            await writer.drain()

    transport = kind(await serve(handle), {}, 0.3)
    exchange = await transport.fetch(transport.prepare("/chat/completions", b"{}"))
    assert stream.read(exchange).cause == cause
    if cause == "http 503":
        assert exchange.headers["retry-after"] == "2"
    await transport.close()


async def test_refused(unused_tcp_port):
    """Nobody listens."""
    transport = PlainTransport(f"http://127.0.0.1:{unused_tcp_port}/v1", {}, 1.0)
    exchange = await transport.fetch(transport.prepare("/models"))
    assert exchange.cause == "refused"


async def test_a_stale_connection_is_replaced_once(serve):
    """A server that closes idle connections costs no failed request, and it is counted."""
    connections = 0

    async def handle(reader, writer):
        nonlocal connections
        connections += 1
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        await request(reader)  # and closes without an answer

    transport = PlainTransport(await serve(handle), {}, 1.0)
    ask = transport.prepare("/chat/completions", b"{}")
    assert (await transport.fetch(ask)).cause == ""
    second = await transport.fetch(ask)
    assert (second.cause, second.reconnects, connections) == ("", 1, 2)
    await transport.close()


async def test_cancelling_closes_the_connection(serve):
    """A cancelled request leaves no connection on which its answer could come later."""
    closed = asyncio.Event()

    async def handle(reader, writer):
        await request(reader)
        await reader.read()
        closed.set()

    transport = PlainTransport(await serve(handle), {}, 5.0)
    task = asyncio.create_task(transport.fetch(transport.prepare("/chat/completions", b"{}")))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(closed.wait(), 2)
    assert not transport.idle


async def test_a_large_request_arrives_whole(serve):
    """A body larger than the socket's buffer is sent in full."""
    sizes = []

    async def handle(reader, writer):
        await asyncio.sleep(0.1)
        sizes.append(len((await request(reader)).partition(b"\r\n\r\n")[2]))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    transport = PlainTransport(await serve(handle), {}, 5.0)
    body = b" " * 8_000_000
    exchange = await transport.fetch(transport.prepare("/chat/completions", body))
    assert (exchange.cause, sizes) == ("", [len(body)])
    await transport.close()
