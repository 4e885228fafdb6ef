"""The least that a client on uvloop can do: stamp each read, and look for the end of the answer.

``python bare_protocol.py URL USERS REQUESTS TOKENS OUT`` keeps no answer, parses none and
prepares one request for all. What it costs a token is the system's share (waking up, reading,
acknowledging), which no client on this event loop can go below: the floor for the others.
"""

import asyncio
import gc
import json
import sys
from itertools import pairwise
from pathlib import Path
from time import perf_counter as clock
from urllib.parse import urlsplit

import uvloop

END = b"\r\n0\r\n\r\n"


class Bare(asyncio.Protocol):
    """One connection, one request at a time."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def ask(self, request: bytes) -> asyncio.Future:
        """Send it; the future is done at the answer's end."""
        self.sent, self.times = clock(), []
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.done

    def data_received(self, data: bytes) -> None:
        self.times.append(clock())
        if data.endswith(END):
            self.done.set_result(None)


async def main(url: str, users: int, requests: int, tokens: int, out: Path) -> None:
    """Run the closed loop, each user a millisecond after the one before."""
    server = urlsplit(url)
    asked = {"model": "mock", "messages": [{"role": "user", "content": "time " * 32}]}
    body = json.dumps({**asked, "max_tokens": tokens, "stream": True}).encode()
    head = f"POST {server.path}/chat/completions HTTP/1.1\r\nHost: {server.netloc}\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    loop, numbers = asyncio.get_running_loop(), iter(range(requests))
    ttft, gaps = [], []

    async def user(number: int) -> None:
        _, one = await loop.create_connection(Bare, server.hostname, server.port)
        await asyncio.sleep(number * 0.001)
        for _ in numbers:
            await one.ask(request)
            times = one.times[-tokens:]  # before them, a head that came alone
            ttft.append((times[0] - one.sent) * 1e3)
            gaps.extend((after - before) * 1e3 for before, after in pairwise(times))

    gc.disable()
    await asyncio.gather(*map(user, range(users)))
    out.write_text(json.dumps({"ttft": ttft, "gaps": gaps}))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], *map(int, sys.argv[2:5]), Path(sys.argv[5])))
