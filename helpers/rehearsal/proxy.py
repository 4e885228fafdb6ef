"""The rehearsal's stand-in for a provider's HTTPS proxy: HTTP carried to a machine's port."""

from collections.abc import Mapping
from pathlib import Path

import aiohttp
from aiohttp import web

_ONE_HOP = {"host", "connection", "keep-alive", "transfer-encoding", "content-length"}


async def forward(
    request: web.Request, socket: Path, path: str, body: bytes | None = None
) -> web.StreamResponse:
    """Send a request on to the server behind a Unix socket, and its answer back as it comes.

    Args:
        request: what came in.
        socket: the socket that stands for the machine's port.
        path: what to ask for there, without the leading slash.
        body: sent in place of the request's own.
    """
    connector = aiohttp.UnixConnector(path=str(socket))
    async with (
        aiohttp.ClientSession(connector=connector, auto_decompress=False) as session,
        session.request(
            request.method,
            f"http://machine/{path}",
            params=request.query,
            headers=_end_to_end(request.headers),
            data=await request.read() if body is None else body,
            timeout=aiohttp.ClientTimeout(total=None),
        ) as answer,
    ):
        response = web.StreamResponse(status=answer.status, headers=_end_to_end(answer.headers))
        await response.prepare(request)
        async for piece in answer.content.iter_any():
            await response.write(piece)
        return response


def _end_to_end(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers that are not about one hop only."""
    return {name: value for name, value in headers.items() if name.lower() not in _ONE_HOP}
