"""The load generator as a process of its own.

``python -m helpers.load.generator`` reads a spec (one line of JSON) from standard input, gets ready,
says so, waits for ``go``, and writes a line of JSON for each finished request, then one about
itself. It needs nothing but Python 3.10 and its standard library (for TLS and proxies aiohttp, and
uvloop where it exists), so the same module runs beside a notebook, in a cluster's worker and on the
rented instance. The end of standard input stops it: it never outlives the process that started it.
"""

import asyncio
import contextlib
import json
import math
import os
import signal
import threading
from time import perf_counter as clock
from time import time

from helpers.load.client.eventloop import new_loop
from helpers.load.client.wire import PlainTransport, transport_for
from helpers.load.users import Generator, json_line

LATE_S = 0.5  # a worker that is ready later than this does not begin


class _Output:
    """Lines to standard output without ever blocking the event loop."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.waiting = descriptor, bytearray()
        os.set_blocking(descriptor, False)

    def __call__(self, line: bytes) -> None:
        self.waiting += line
        try:
            while self.waiting:
                del self.waiting[: os.write(self.descriptor, self.waiting[: 1 << 16])]
        except BlockingIOError:
            pass  # the reader is slow: kept until the next call

    def flush(self) -> None:
        os.set_blocking(self.descriptor, True)
        self(b"")


def _raise_file_limit() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _lines(descriptor: int):
    """Yield lines without Python's buffering, whose lock a thread would hold at exit."""
    rest = b""
    while data := os.read(descriptor, 1 << 16):
        *lines, rest = (rest + data).split(b"\n")
        yield from lines


async def _main(spec: dict, commands, out: _Output) -> None:
    generator = Generator(spec, out)
    await generator.prepare()
    late_s = time() - spec.get("start_at", math.inf)
    late_s = late_s if late_s > LATE_S else 0.0
    out(json_line({"type": "ready", "error": generator.unreachable, "late_s": late_s}))
    loop, go = asyncio.get_running_loop(), asyncio.Event()

    def listen() -> None:
        for command in commands:
            if command == b"go":
                loop.call_soon_threadsafe(go.set)
            elif command == b"stop":
                break
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(stop)

    def stop() -> None:
        generator.ended = generator.ended or "interrupted"
        if go.is_set():
            generator.stop()
        go.set()

    if "start_at" in spec:  # among machines: a time of day, the standard input is not followed
        if generator.unreachable or late_s:
            return  # the load would not be the one that was asked for
        begin = clock() + spec["start_at"] - time()
    else:
        threading.Thread(target=listen, daemon=True).start()
        await go.wait()
        begin = clock() + 0.02
    await generator.play(begin)


def main() -> None:
    """Play the spec on standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, by `stop` or its end
    _raise_file_limit()
    commands, out = _lines(0), _Output(1)
    spec = json.loads(next(commands))
    loop = new_loop(lean=transport_for(spec["base_url"]) is PlainTransport)
    loop.run_until_complete(_main(spec, commands, out))
    out.flush()


if __name__ == "__main__":
    main()
