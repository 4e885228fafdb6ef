"""The load generator as a process of its own.

``python -m helpers.load.generator`` reads a spec (one line of JSON) from standard input, gets
ready, says so, waits for ``go`` (with a time of day, where several must begin together), and writes
a line of JSON for each finished request, then one about itself. It needs Python 3.11 with
httptools, msgspec and uvloop (whose event loop carries twice the streams of asyncio's own), which
vLLM's image has, so the same module runs beside a notebook, in a cluster's worker and on the rented
instance. The end of standard input stops it: it never outlives whoever started it.
"""

import asyncio
import contextlib
import json
import os
import resource
import sys
import time

import uvloop

from helpers.load.arrivals import BEGIN_S
from helpers.load.asked import json_line
from helpers.load.users import Generator


class _Output:
    """Lines to standard output without ever blocking the event loop."""

    def __init__(self) -> None:
        self.waiting = bytearray()
        os.set_blocking(1, False)

    def __call__(self, line: bytes) -> None:
        self.waiting += line
        with contextlib.suppress(BlockingIOError):  # the reader is slow: kept until the next call
            while self.waiting:
                del self.waiting[: os.write(1, self.waiting[: 1 << 16])]

    def flush(self) -> None:
        os.set_blocking(1, True)
        self(b"")


def _listen(player: Generator) -> asyncio.Future[float]:
    """Follow standard input; returns at which time of day to begin, also where it is ``stop``."""
    loop = asyncio.get_running_loop()
    go: asyncio.Future[float] = loop.create_future()

    def hear() -> None:
        for line in os.read(0, 1 << 16).splitlines() or [b""]:
            word, *at = line.split() or [b""]
            if word != b"go":
                player.stop("complete" if word == b"enough" else "interrupted")
                loop.remove_reader(0)
            if not go.done():
                go.set_result(float(at[0]) if at else time.time() + BEGIN_S)

    loop.add_reader(0, hear)
    return go


async def _main(spec: dict, out: _Output) -> None:
    player = Generator(spec, out)
    await player.prepare()
    out(json_line({"type": "ready", "error": player.unreachable}))
    begin = await _listen(player)
    await player.play(time.perf_counter() + begin - time.time())


def _raise_file_limit() -> None:
    """Allow as many open files as the system does; what macOS says is more than it does."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for files in (most, 61440, 24576, 10240):
        with contextlib.suppress(ValueError, OSError):  # it is more than is allowed
            return resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))


def main() -> None:
    """Play the spec on standard input."""
    _raise_file_limit()
    spec, out = json.loads(sys.stdin.buffer.readline()), _Output()
    uvloop.new_event_loop().run_until_complete(_main(spec, out))
    out.flush()


if __name__ == "__main__":
    main()
