"""Requests on the wire: one clock read for each read of the socket, before anything else is done.

A ``Transport`` keeps connections to one server alive. Each request is prepared as bytes ahead of
its time and becomes an ``Exchange``: when it was sent, and each piece of the answer's body with
the time of the read that brought it. Failures are kept in it and never raised.
"""

import asyncio
import os
from contextlib import suppress
from time import perf_counter as clock
from typing import cast
from urllib.parse import urlsplit

import httptools

from helpers.load.client.route import Route

STALE_S = 0.1  # a connection that had been closed says so at once; later, the request was lost
AT_ONCE = 64  # connections opened at a time


class Exchange:
    """One request: times are seconds on ``time.perf_counter``.

    ``pieces`` are the parts of the answer's body as the server framed them (chunks, usually one
    for each token), ``times`` when each was read. ``cause`` is empty for a complete answer, else
    ``refused, unreachable, reset, closed early, timeout, malformed`` or ``interrupted``.
    """

    def __init__(self) -> None:
        self.sent = self.end = self.connect_s = 0.0
        self.pieces: list[bytes] = []
        self.times: list[float] = []
        self.status = self.reconnects = 0
        self.headers: dict[str, str] = {}
        self.cause = self.error = ""

    @property
    def body(self) -> bytes:
        """The answer's body, as far as it came."""
        return b"".join(self.pieces)

    def fail(self, cause: str, error: str) -> None:
        """End it as failed; what was read stays."""
        self.cause, self.error, self.end = cause, error or cause, clock()


class Connection(asyncio.Protocol):
    """One kept-alive connection, one request at a time.

    Reads are stamped and kept. httptools takes the framing off them afterwards, each with its own
    time: once the event loop has stamped all that had arrived, or in the middle of a stream later.
    """

    exchange: Exchange | None = None
    later: tuple[bytes, ...] = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; bytes of a plain connection are written past the event loop's own queue."""
        self.transport, self.alive = cast(asyncio.Transport, transport), True
        plain = transport.get_extra_info("sslcontext") is None
        self.descriptor = transport.get_extra_info("socket").fileno() if plain else -1
        self.times: list[float] = []
        self.reads: list[bytes] = []
        self.stamp, self.keep = self.times.append, self.reads.append
        self.soon = asyncio.get_running_loop().call_soon

    def ask(self, request: bytes, exchange: Exchange, timeout_s: float) -> asyncio.Future:
        """Send a request now, in this very call; the future is done when its exchange is."""
        self.exchange = exchange
        self.on_body = exchange.pieces.append
        self.parser = httptools.HttpResponseParser(self)
        loop = asyncio.get_running_loop()
        self.done = loop.create_future()
        late = "timeout", f"no end in {timeout_s:g} s"
        self.timer = loop.call_later(timeout_s, self.stop, *late)
        exchange.sent = clock()
        if self.descriptor >= 0:
            with suppress(OSError):  # the event loop tries again, and tells
                request = request[os.write(self.descriptor, request) :]
        if request:
            self.transport.write(request)
        return self.done

    def data_received(self, data: bytes) -> None:
        """Stamp what has arrived; an answer cannot be over where an event in a chunk is."""
        self.stamp(clock())
        self.keep(data)
        if not data.endswith(self.later):
            self.soon(self.read)

    def read(self) -> None:
        """Have httptools read what was kept; each piece of the body gets the time of its read."""
        try:
            for time, data in zip(self.times, self.reads, strict=True):
                if (exchange := self.exchange) is None:
                    self.close()  # more than the answer came
                    break
                self.now = time
                try:
                    self.parser.feed_data(data)
                finally:
                    exchange.times += [time] * (len(exchange.pieces) - len(exchange.times))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.fail("malformed", f"not HTTP: {error}")
        self.times.clear()
        self.reads.clear()

    def on_message_begin(self) -> None:
        """Begin with a head; the parser calls this and the next ones."""
        if self.exchange is None:
            raise ConnectionError("more than the answer came")  # `read` closes the connection
        self.headers: dict[str, str] = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a field of the head, or of the trailer."""
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Keep the head: the exchange has an answer."""
        if self.exchange is not None:
            self.exchange.status = self.parser.get_status_code()
            self.exchange.headers = self.headers
            self.later = (b"\n\n\r\n",) if "transfer-encoding" in self.headers else ()

    def on_message_complete(self) -> None:
        """End the exchange, unless this was an interim answer (1xx)."""
        if self.exchange is not None and self.exchange.status >= 200:
            self.exchange.end = self.now
            self._finish(keep=self.parser.should_keep_alive())

    def connection_lost(self, error: Exception | None) -> None:
        """Fail what is under way, unless the end of the connection is the end of its answer."""
        self.alive = False
        self.read()
        if self.exchange is None:
            return
        framed = self.exchange.headers.keys() & {"content-length", "transfer-encoding"}
        if error is not None:
            self.fail("reset", str(error))
        elif self.exchange.status >= 200 and not framed:
            self.exchange.end = clock()
            self._finish(keep=False)
        else:
            self.fail("closed early", "the server closed the connection before the answer's end")

    def stop(self, cause: str, error: str) -> None:
        """Give up on what is under way, unless what was kept is its end."""
        self.read()
        if self.exchange is not None:
            self.fail(cause, error)

    def fail(self, cause: str, error: str) -> None:
        """End what is under way as failed, and the connection with it."""
        if self.exchange is not None:
            self.exchange.fail(cause, error)
            self._finish(keep=False)
        self.close()

    def close(self) -> None:
        """Close it at once."""
        self.alive = False
        self.transport.abort()

    def _finish(self, keep: bool) -> None:
        self.exchange, self.later = None, ()
        self.timer.cancel()
        if not keep:
            self.close()
        if not self.done.done():
            self.done.set_result(None)


class Transport:
    """Requests to one server over kept-alive connections.

    Args:
        base_url: root of the API, e.g. ``http://127.0.0.1:8000/v1``.
        headers: sent with each request.
        timeout_s: from sending a request to the end of its answer.
        ca_file: see ``Endpoint``.
    """

    def __init__(
        self, base_url: str, headers: dict[str, str], timeout_s: float, ca_file: str = ""
    ) -> None:
        self.route, self.timeout_s = Route(base_url, ca_file), timeout_s
        url = urlsplit(base_url)
        self.root = url.path.rstrip("/")
        self.fields = {"Host": url.netloc.rpartition("@")[2], "Accept": "*/*", **headers}
        self.idle: list[Connection] = []

    def prepare(self, path: str, body: bytes = b"", session: str = "") -> bytes:
        """Return the whole request as bytes, so that nothing is left to build when it is due."""
        fields = {**self.fields, "X-Session-ID": session} if session else dict(self.fields)
        if body:
            fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        method = "POST" if body else "GET"
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"{method} {self.root}{path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body

    async def warm(self, connections: int) -> None:
        """Open connections ahead of the first requests, a few at a time."""
        for start in range(0, connections, AT_ONCE):
            count = min(AT_ONCE, connections - start)
            self.idle += await asyncio.gather(*(self.route.open(Connection) for _ in range(count)))

    async def fetch(self, request: bytes, exchange: Exchange | None = None) -> Exchange:
        """Send a prepared request and return the whole exchange; failures are in it, not raised.

        A kept-alive connection that at once turns out to be closed is replaced, one time, by a
        fresh one (the race every keep-alive client has; RFC 9112, 9.3.1). What that took counts
        as ``connect_s``. One that is reset after a wait had its request, so that is a failure.

        Args:
            request: see ``prepare``.
            exchange: filled in and returned; whoever cancels this finds in it what was read.
        """
        exchange = exchange or Exchange()
        if kept := self._kept():
            await self._ask(kept, request, exchange)
            lost = exchange.cause in ("reset", "closed early") and not exchange.status
            if not lost or exchange.end - exchange.sent > STALE_S:
                return exchange
            exchange.reconnects, exchange.cause, exchange.error = 1, "", ""
            await self.close()  # the others are no better
        begin = exchange.sent = exchange.sent or clock()  # when the caller asked
        try:
            fresh = await asyncio.wait_for(self.route.open(Connection), self.timeout_s)
        except asyncio.CancelledError:
            exchange.fail("interrupted", "the run was stopped")
            raise
        except TimeoutError:
            exchange.fail("timeout", "no connection in time")
        except OSError as error:
            refused = isinstance(error, ConnectionRefusedError)
            exchange.fail("refused" if refused else "unreachable", str(error))
        else:
            exchange.connect_s = clock() - begin
            await self._ask(fresh, request, exchange)
        return exchange

    async def _ask(self, connection: Connection, request: bytes, exchange: Exchange) -> None:
        try:
            await connection.ask(request, exchange, self.timeout_s)
        except asyncio.CancelledError:
            connection.stop("interrupted", "the run was stopped")
            raise
        if connection.alive:
            self.idle.append(connection)

    def _kept(self) -> Connection | None:
        """Return an idle connection that is still alive."""
        while self.idle:
            connection = self.idle.pop()
            said = connection.reads  # unasked: it closes as soon as that is read
            if connection.alive and not said and not connection.transport.is_closing():
                return connection
        return None

    async def close(self) -> None:
        """Close the idle connections."""
        for connection in self.idle:
            connection.close()
        self.idle.clear()
