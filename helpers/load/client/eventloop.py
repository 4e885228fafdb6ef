"""asyncio's event loop, with the callbacks of ``add_reader`` run where epoll names the socket.

A streamed token is one readable socket. asyncio makes a key, a handle and a turn of the loop of
it, uvloop a stream, a buffer and a context: both cost more than reading the token does. Here the
callback is run within the selector, and asyncio has its turn when there is something to do.
"""

import asyncio
import functools
import math
import select
import selectors
import socket
from collections.abc import Callable
from time import monotonic, perf_counter


class _Streams(selectors.DefaultSelector):
    """asyncio's selector, itself watched by an epoll that holds the callbacks' sockets too."""

    def __init__(self) -> None:
        super().__init__()
        self.callbacks: dict[int, Callable[[], object]] = {self.fileno(): lambda: True}
        self.epoll = select.epoll()
        self.epoll.register(self.fileno(), select.EPOLLIN)

    def select(self, timeout: float | None = None) -> list:
        """Run callbacks until one gives the loop something to do, or the time is over."""
        until = math.inf if timeout is None else monotonic() + timeout
        callbacks, poll, given = self.callbacks, self.epoll.poll, False
        while not given:
            wait = until - monotonic()
            if 0 < wait < 0.001:  # epoll counts in milliseconds, a schedule does not
                select.select((self.epoll,), (), (), wait)
            ready = poll(None if wait == math.inf else max(int(wait * 1000), 0) / 1000)
            for descriptor, _ in ready:
                callback = callbacks.get(descriptor)  # none: removed by one before it
                if callback and callback():
                    given = True
            given = given or wait <= 0
        return super().select(0)

    def close(self) -> None:
        """Close both."""
        self.epoll.close()
        super().close()


class Loop(asyncio.SelectorEventLoop):
    """See the module. Linux only."""

    def __init__(self) -> None:
        self._streams = _Streams()
        super().__init__(self._streams)

    def add_reader(self, fd, callback: Callable[..., object], *args: object) -> None:
        """Have ``callback`` run whenever ``fd`` can be read.

        It returns whether it has given the loop something to do, e.g. by ending a future.
        """
        number = fd if isinstance(fd, int) else fd.fileno()
        known = self._streams.callbacks
        if number not in known:
            self._streams.epoll.register(number, select.EPOLLIN)
        known[number] = functools.partial(callback, *args) if args else callback

    def remove_reader(self, fd) -> bool:
        """Stop it; before ``fd`` is closed."""
        number = fd if isinstance(fd, int) else fd.fileno()
        if self._streams.callbacks.pop(number, None) is None:
            return False
        self._streams.epoll.unregister(number)
        return True


class LagProbe:
    """How long bytes that have arrived wait until the event loop stamps them, sampled."""

    def __init__(self, loop: asyncio.AbstractEventLoop, lags: list[float]) -> None:
        self.loop, self.lags = loop, lags
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.sent = 0.0
        loop.add_reader(self.ours, self._arrived)

    def send(self) -> None:
        """Send a byte, unless one is still on its way."""
        if not self.sent:
            self.sent = perf_counter()
            self.theirs.send(b".")

    def _arrived(self) -> None:
        self.lags.append(perf_counter() - self.sent)
        self.ours.recv(16)
        self.sent = 0.0

    def close(self) -> None:
        """Stop sampling."""
        self.loop.remove_reader(self.ours)
        self.ours.close()
        self.theirs.close()


def new_loop(*, lean: bool) -> asyncio.AbstractEventLoop:
    """Return the cheapest event loop that there is here.

    Args:
        lean: for ``helpers.load.client.wire``'s transport; else for aiohttp, which wants uvloop.
    """
    if lean and hasattr(select, "epoll"):
        return Loop()
    try:
        import uvloop
    except ImportError:
        return asyncio.SelectorEventLoop()
    return uvloop.new_event_loop()
