"""A timer finer than the event loop's own, and how late the loop stamps what has arrived.

Both last as long as the load generator's process, whose end closes them.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
from time import perf_counter as clock

_LINUX = sys.platform == "linux"
_LIBC = ctypes.CDLL(None)


class Alarm:
    """Waits to a tenth of a millisecond, by a timer of the system's; for one task at a time.

    uvloop's timers count in whole milliseconds, which is late for a schedule of thousands a second.
    Linux has a timer that is read like a file; elsewhere it is a signal, at twice the cost.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.waiter: asyncio.Future | None = None
        self.file = _LIBC.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK) if _LINUX else -1
        if _LINUX:
            self.loop.add_reader(self.file, self._ring)
        else:
            self.loop.add_signal_handler(signal.SIGALRM, self._ring)

    async def until(self, at: float) -> None:
        """Return at a time of ``time.perf_counter``."""
        while (wait_s := at - clock()) > 0:
            self.waiter = self.loop.create_future()
            self._set(wait_s)
            await self.waiter

    def _set(self, wait_s: float) -> None:
        if not _LINUX:
            signal.setitimer(signal.ITIMER_REAL, wait_s)
            return
        setting = (ctypes.c_long * 4)(0, 0, int(wait_s), int(wait_s % 1 * 1e9) + 1)
        _LIBC.timerfd_settime(self.file, 0, setting, None)

    def _ring(self) -> None:
        if _LINUX:
            with contextlib.suppress(BlockingIOError):  # set anew meanwhile
                os.read(self.file, 8)
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class LagProbe:
    """How long bytes that have arrived wait until the event loop stamps them, sampled."""

    def __init__(self, lags: list[float]) -> None:
        self.loop, self.lags = asyncio.get_running_loop(), lags
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.sent = 0.0
        self.loop.add_reader(self.ours, self._arrived)

    def send(self) -> None:
        """Send a byte, unless one is still on its way."""
        if not self.sent:
            self.sent = clock()
            self.theirs.send(b".")

    def _arrived(self) -> None:
        self.lags.append(clock() - self.sent)
        self.ours.recv(16)
        self.sent = 0.0
