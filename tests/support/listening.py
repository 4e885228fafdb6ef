"""A server on loopback that answers as a test wants."""

import asyncio
from collections.abc import Awaitable, Callable

from helpers.endpoint import Endpoint


async def listen(
    answer: Callable[[bytes, asyncio.StreamWriter], Awaitable[object]],
) -> tuple[asyncio.Server, Endpoint]:
    """Start it. ``answer(body, writer)`` writes the answer to each request (a GET's body is empty);
    it hangs up by returning ``True``."""

    async def handle(reader, writer):
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
                hang_up = await answer(await reader.readexactly(int(length or 0)), writer)
                await writer.drain()
                if hang_up:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    return server, Endpoint(base_url=f"http://127.0.0.1:{port}/v1", model="m")
