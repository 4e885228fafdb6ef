"""Requests on the wire against h11's framing, and against servers that misbehave."""

import asyncio
import socket
import struct

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.answers import DONE, ROLE, STOP, WORD, chunked, count

from helpers.load.client.reading import read
from helpers.load.client.transport import Connection, Exchange, Transport

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


class Unplugged:
    """A connection's other end that takes everything and says nothing."""

    def get_extra_info(self, name: str) -> object:
        return self

    def write(self, data: bytes) -> None:
        """Nobody reads it."""

    def abort(self) -> None:
        """Nothing to close."""


def fed(pieces, closed: bool = False) -> tuple[Exchange, bool]:
    """The exchange after its connection got ``pieces``; whether the connection is still alive."""

    async def main() -> tuple[Exchange, bool]:
        connection, exchange = Connection(), Exchange()
        connection.connection_made(Unplugged())
        connection.ask(b"", exchange, 60)
        for piece in filter(None, pieces):
            connection.data_received(piece)
        await asyncio.sleep(0)  # they are read once all have been stamped
        if closed:
            connection.connection_lost(None)
        return exchange, connection.alive

    return asyncio.run(main())


@settings(max_examples=200, deadline=None)
@given(PAYLOAD, st.sampled_from(["chunked", "counted", "until close"]), STATUS, BREAKS)
def test_reads_what_h11_reads(parts, framing, status, breaks):
    """Wherever the reads cut the bytes, status and payload are those that h11 finds."""
    if status in (204, 304) and framing == "until close":
        parts = []
    raw = answer(parts, framing, status)
    exchange, alive = fed(cut(raw, breaks), closed=framing == "until close")
    assert exchange.end and not exchange.cause and alive == (framing != "until close")
    assert (exchange.status, exchange.body) == by_h11(raw)
    assert len(exchange.times) == len(exchange.pieces)


@settings(max_examples=100, deadline=None)
@given(PAYLOAD, BREAKS, st.integers(0, 400))
def test_a_cut_answer_is_never_taken_for_whole(parts, breaks, keep):
    """A chunked answer that lacks its end is not done, whatever its payload looks like."""
    raw = answer(parts, "chunked", 200)
    exchange, _ = fed(cut(raw[: min(keep, len(raw) - 1)], breaks), closed=True)
    assert exchange.cause == "closed early"


NONSENSE = [
    b"SSH-2.0-OpenSSH\r\n",
    b"HTTP/1.1 abc\r\n\r\n",
    b"HTTP/1.1 101 Switch\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-5\r\nhello\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: \xb2\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: %s\r\n\r\n" % (b"9" * 5000),
]


@pytest.mark.parametrize("raw", NONSENSE)
def test_nonsense_is_refused(raw):
    """Bytes that are not HTTP end the exchange, they do not hang."""
    exchange, alive = fed([raw])
    assert (exchange.cause, alive) == ("malformed", False)


@pytest.mark.parametrize("more", [b"xx", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno"])
def test_more_than_was_asked_for_ends_the_connection(more):
    """The answer stands, and what follows it is taken for nobody's."""
    for pieces in (
        [answer([b"ok"], "counted", 200) + more],
        [answer([b"ok"], "counted", 200), more],
    ):
        exchange, alive = fed(pieces)
        assert (exchange.body, exchange.cause, alive) == (b"ok", "", False)


def test_a_kept_alive_connection_has_a_time_for_each_read():
    """Chunks of one read share its time, and ``end`` is that of the last."""
    exchange, _ = fed([answer([b"a", b"b"], "chunked", 200)[:-5], b"0\r\n\r\n"])
    assert exchange.times[0] == exchange.times[1] < exchange.end


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


EVENTS = [ROLE, WORD, WORD, STOP, count(4), DONE]


@pytest.mark.parametrize("cuts", [[70, 100, 50], [48, 9, 90], [46, 2], [49]])
async def test_an_answer_is_read_wherever_it_is_cut(serve, cuts):
    """Over a real connection, three times on the same one."""
    seen = []

    async def handle(reader, writer):
        while seen.append(await request(reader)) is None:
            for piece in cut(chunked(EVENTS), cuts):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.01)

    transport = Transport(await serve(handle), {"X-Test": "1"}, 5.0)
    for session in ("chat-3", "", ""):
        ask = transport.prepare("/chat/completions", b"{}", session)
        exchange = await transport.fetch(ask)
        found = read(exchange)
        assert (found.cause, exchange.status, found.output_tokens) == ("", 200, 4)
        assert exchange.sent < exchange.times[0] <= found.token_times[0] <= exchange.end
    assert len(transport.idle) == 1 and [b"X-Session-ID: chat-3" in one for one in seen[:2]] == [
        True,
        False,
    ]
    assert seen[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:")
    await transport.close()


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
async def test_failures_are_told_apart(serve, raw, cause):
    """Each way to fail has its cause."""

    async def handle(reader, writer):
        await request(reader)
        if raw is None:
            await asyncio.sleep(1)
        else:
            writer.write(raw)
            await writer.drain()

    transport = Transport(await serve(handle), {}, 0.3)
    exchange = await transport.fetch(transport.prepare("/chat/completions", b"{}"))
    assert read(exchange).cause == cause
    if cause == "http 503":
        assert exchange.headers["retry-after"] == "2"
    await transport.close()


async def test_a_reset_after_a_wait_is_a_failure(serve):
    """A server that breaks under load resets connections that waited: its user saw that."""

    async def handle(reader, writer):
        await request(reader)
        await asyncio.sleep(0.3)
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    transport = Transport(await serve(handle), {}, 5.0)
    await transport.warm(1)
    exchange = await transport.fetch(transport.prepare("/chat/completions", b"{}"))
    await transport.close()
    assert exchange.cause in ("reset", "closed early") and exchange.reconnects == 0
    assert exchange.end - exchange.sent > 0.25


async def test_refused(unused_tcp_port):
    """Nobody listens."""
    transport = Transport(f"http://127.0.0.1:{unused_tcp_port}/v1", {}, 1.0)
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

    transport = Transport(await serve(handle), {}, 1.0)
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

    transport = Transport(await serve(handle), {}, 5.0)
    exchange, ask = Exchange(), transport.prepare("/chat/completions", b"{}")
    task = asyncio.create_task(transport.fetch(ask, exchange))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(closed.wait(), 2)
    assert not transport.idle and exchange.cause == "interrupted"


async def test_a_large_request_arrives_whole(serve):
    """A body larger than the socket's buffer is sent in full."""
    sizes = []

    async def handle(reader, writer):
        await asyncio.sleep(0.1)
        sizes.append(len((await request(reader)).partition(b"\r\n\r\n")[2]))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    transport = Transport(await serve(handle), {}, 5.0)
    body = b" " * 8_000_000
    exchange = await transport.fetch(transport.prepare("/chat/completions", body))
    assert (exchange.cause, sizes) == ("", [len(body)])
    await transport.close()


async def test_the_time_lost_on_a_stale_connection_is_the_users(serve):
    """Latency counts from when the user asked: what the lost connection took is ``connect_s``."""
    connections = 0

    async def handle(reader, writer):
        nonlocal connections
        connections += 1
        await request(reader)
        if connections == 1:
            await asyncio.sleep(0.05)
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    transport = Transport(await serve(handle), {}, 1.0)
    await transport.warm(1)
    exchange = await transport.fetch(transport.prepare("/chat/completions", b"{}"))
    assert (exchange.cause, exchange.reconnects) == ("", 1)
    assert 0.05 < exchange.connect_s < exchange.connect_s + exchange.end - exchange.sent < 0.5
    await transport.close()
