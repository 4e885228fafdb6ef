"""The lean transport: HTTP/1.1 over plain TCP with one clock read for each read of the socket.

What a streamed token costs the client decides how true its times are. Here a read is stamped and
put on a list, and nothing else happens until the request is over: framing, server-sent events and
JSON are read afterwards (``helpers.load.client.stream``). TLS and proxies go through ``helpers.load.client.general``.
"""

import asyncio
import os
import re
import socket
import urllib.request
from pathlib import Path
from time import perf_counter as clock
from urllib.parse import urlsplit

from helpers.load.client.http1 import ProtocolError, Response

CHUNKED_HEAD = re.compile(  # a complete 200 head that announces a chunked body
    rb"HTTP/1\.1 200[^\r\n]*\r\n(?:[^\r\n]+\r\n)*?(?i:transfer-encoding):[ \t]*(?i:chunked)\r\n"
    rb"(?:[^\r\n]+\r\n)*\r\n"
)
READ = 1 << 16  # bytes at a time
STALE_S = 0.1  # a connection that had been closed says so at once; later, the request was lost
STREAM_END = b"data: [DONE]\n\n\r\n0\r\n\r\n"  # how every OpenAI stream ends, with its framing


class Exchange:
    """One request on the wire: when it was sent, and each read of the answer with its time.

    Times are seconds on ``time.perf_counter``. ``cause`` is empty for a complete answer, otherwise
    one of ``refused, reset, closed early, timeout, malformed, interrupted``.
    """

    __slots__ = (
        "cause", "connect_s", "end", "error", "framed", "headers", "reads", "reconnects", "sent",
        "status", "times",
    )  # fmt: skip

    def __init__(self) -> None:
        self.sent = self.end = self.connect_s = 0.0
        self.reads: list[bytes] = []
        self.times: list[float] = []
        self.status, self.headers, self.framed = 0, {}, True
        self.cause = self.error = ""
        self.reconnects = 0

    def fail(self, cause: str, error: str = "") -> None:
        """Close the exchange as failed, keeping what was read."""
        self.cause, self.error, self.end = cause, error or cause, clock()

    def pieces(self):
        """Yield ``(time, payload)`` of each read, the framing taken off; sets status and headers.

        Raises:
            ProtocolError: the bytes are not HTTP/1.1.
        """
        if not self.framed:
            yield from zip(self.times, self.reads, strict=True)
            return
        response = Response()
        for time, data in zip(self.times, self.reads, strict=True):
            payload = response.feed(data)
            self.status, self.headers = response.status, response.headers
            if payload:
                yield time, payload


class _Connection:
    """One keep-alive connection, one request at a time.

    Args:
        sock: connected and non-blocking.
        loop: the running event loop; ``helpers.load.client.eventloop`` reads at the least cost.
    """

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self.sock, self.receive, self.loop = sock, sock.recv, loop
        self.exchange: Exchange | None = None
        self.alive, self.writing = True, False
        loop.add_reader(sock, self._readable)

    def send(self, payload: bytes, exchange: Exchange, timeout_s: float) -> asyncio.Future:
        """Write the request now, in this very call, so that ``sent`` is when its bytes left."""
        self.exchange, self.streaming, self.checked = exchange, False, 0
        self.response: Response | None = None
        self.waiter = self.loop.create_future()
        late = self._fail, "timeout", f"no end in {timeout_s:g} s"
        self.timer = self.loop.call_later(timeout_s, *late)
        exchange.sent = clock()
        self._write(payload)
        return self.waiter

    def _write(self, payload: bytes) -> None:
        try:
            payload = payload[self.sock.send(payload) :]
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail("reset", str(error))
            return
        if payload:  # the socket's buffer is full
            self.loop.add_writer(self.sock, self._write, payload)
        elif self.writing:
            self.loop.remove_writer(self.sock)
        self.writing = bool(payload)

    def _readable(self) -> bool:
        """Stamp and keep what there is; return whether the answer has come to its end."""
        exchange = self.exchange
        try:
            data = self.receive(READ)
        except BlockingIOError:
            return False
        except OSError as error:
            self._lost(error)
            return True
        if not data or exchange is None:  # the end, or an answer nobody asked for
            self._lost(None)
            return True
        exchange.times.append(clock())
        exchange.reads.append(data)
        # Within a chunked stream only a read that ends in an empty line can be its last.
        if self.streaming and not data.endswith(b"\r\n\r\n") and len(data) >= 4:
            return False
        self._check(data)
        return self.exchange is None

    def _check(self, data: bytes) -> None:
        exchange = self.exchange
        if not self.streaming and len(exchange.reads) == 1:
            head = CHUNKED_HEAD.match(data)
            self.streaming = bool(head)
            if head and (head.end() == len(data) or not data.endswith(b"\r\n\r\n")):
                return
        tail = data if len(data) >= len(STREAM_END) else b"".join(exchange.reads[-3:])
        if self.streaming and self.response is None and tail.endswith(STREAM_END):
            self._finish(keep=True)
            return
        self.response = self.response or Response()
        try:
            for read in exchange.reads[self.checked :]:
                self.response.feed(read)
        except ProtocolError as error:
            self._fail("malformed", str(error))
            return
        self.checked = len(exchange.reads)
        if self.response.done:
            self._finish(keep=self.response.keep_alive and not self.response.rest)

    def _lost(self, error: Exception | None) -> None:
        if self.exchange is None:
            self.close()
            return
        response = Response()
        try:
            for read in self.exchange.reads:
                response.feed(read)
        except ProtocolError as problem:
            self._fail("malformed", str(problem))
            return
        if error is None and response.eof():
            self._finish(keep=False)
        elif error is None:
            self._fail("closed early", "the server closed the connection before the answer's end")
        else:
            self._fail("reset", str(error))

    def _finish(self, keep: bool) -> None:
        exchange, self.exchange = self.exchange, None
        exchange.end = exchange.times[-1] if exchange.times else clock()
        self.timer.cancel()
        if not keep:
            self.close()
        if not self.waiter.done():
            self.waiter.set_result(None)

    def _fail(self, cause: str, error: str) -> None:
        if self.exchange is not None:
            self.exchange.fail(cause, error)
            self.exchange = None
            self.timer.cancel()
            self.close()
            if not self.waiter.done():
                self.waiter.set_result(None)

    def close(self) -> None:
        """Close it, whatever is on its way."""
        if self.alive:
            self.alive = False
            self.loop.remove_reader(self.sock)
            if self.writing:
                self.loop.remove_writer(self.sock)
            self.sock.close()


class PlainTransport:
    """Requests to one ``http://`` server over kept-alive connections.

    Args:
        base_url: root of the API, e.g. ``http://127.0.0.1:8000/v1``.
        headers: sent with each request.
        timeout_s: from sending a request to the end of its answer.
    """

    def __init__(self, base_url: str, headers: dict[str, str], timeout_s: float) -> None:
        url = urlsplit(base_url)
        self.host, self.port = url.hostname, url.port or 80
        self.root = url.path.rstrip("/")
        self.timeout_s = timeout_s
        fields = {"Host": url.netloc.rpartition("@")[2], "Accept": "*/*", **headers}
        self.fields = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.idle: list[_Connection] = []
        self.addresses: list = []
        # The rehearsal's instances share one machine: there a port of theirs is a Unix socket.
        unix = Path(os.environ.get("REHEARSAL_SOCKETS", "/nowhere"), f"{self.port}.sock")
        if unix.exists():
            self.addresses = [(socket.AF_UNIX, socket.SOCK_STREAM, 0, "", str(unix))]

    def prepare(self, path: str, body: bytes | None = None, session: str = "") -> bytes:
        """Return the whole request as bytes, so that nothing is left to build when it is due."""
        method, more = ("GET", "") if body is None else ("POST", _json_fields(body))
        more += f"X-Session-ID: {session}\r\n" if session else ""
        head = f"{method} {self.root}{path} HTTP/1.1\r\n{self.fields}{more}\r\n"
        return head.encode("latin-1") + (body or b"")

    async def warm(self, connections: int) -> None:
        """Open connections ahead of the first requests, a few at a time."""
        for start in range(0, connections, 64):
            count = min(64, connections - start)
            made = await asyncio.gather(*(self._connect() for _ in range(count)))
            self.idle.extend(made)

    async def fetch(self, request: bytes) -> Exchange:
        """Send a prepared request and return the whole exchange; failures are in it, not raised.

        A kept-alive connection that at once turns out to be closed is replaced, one time, by a
        fresh one (the race every keep-alive client has; RFC 9112, 9.3.1). What that took counts
        as ``connect_s``. One that is reset after a wait had its request, so that is a failure.
        """
        exchange = Exchange()
        while True:
            while self.idle and not self.idle[-1].alive:
                self.idle.pop()
            reused = bool(self.idle)
            if reused:
                connection = self.idle.pop()
            else:
                begin = exchange.sent = exchange.sent or clock()  # when the caller asked
                try:
                    connection = await asyncio.wait_for(self._connect(), self.timeout_s)
                except TimeoutError:
                    exchange.fail("timeout", "no connection in time")
                    return exchange
                except OSError as error:
                    refused = isinstance(error, ConnectionRefusedError)
                    exchange.fail("refused" if refused else "unreachable", str(error))
                    return exchange
                exchange.connect_s = clock() - begin
            waiter = connection.send(request, exchange, self.timeout_s)
            try:
                await waiter
            except asyncio.CancelledError:
                connection._fail("interrupted", "the run was stopped")
                raise Interrupted(exchange) from None
            if connection.alive:
                self.idle.append(connection)
            closed = exchange.cause in ("reset", "closed early") and not exchange.reads
            stale = reused and closed and exchange.end - exchange.sent < STALE_S
            if not stale:
                return exchange
            exchange.reconnects, exchange.cause, exchange.error = 1, "", ""
            await self.close()  # the next one is a fresh one

    async def close(self) -> None:
        """Close the idle connections."""
        for connection in self.idle:
            connection.close()
        self.idle.clear()

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        if not self.addresses:
            self.addresses = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        for family, kind, proto, _, address in self.addresses:
            sock = socket.socket(family, kind, proto)
            sock.setblocking(False)
            try:
                await loop.sock_connect(sock, address)
            except OSError as error:
                sock.close()
                failure = error
                continue
            except BaseException:
                sock.close()
                raise
            if family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return _Connection(sock, loop)
        raise failure


class Interrupted(asyncio.CancelledError):
    """A cancelled request; ``exchange`` holds what was read until then."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self.exchange = exchange


def _json_fields(body: bytes) -> str:
    return f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"


def transport_for(base_url: str) -> type:
    """Return the lean transport for plain HTTP without a proxy, else the general one."""
    url = urlsplit(base_url)
    proxied = "http" in urllib.request.getproxies() and not urllib.request.proxy_bypass(url.netloc)
    if url.scheme == "http" and not proxied:
        return PlainTransport
    from helpers.load.client.general import GeneralTransport  # needs aiohttp

    return GeneralTransport
