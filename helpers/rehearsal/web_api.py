"""What the rehearsal's HTTP servers share: routes, answers, refusals, bodies, and a proxy."""

import inspect
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from aiohttp import web

from helpers.settings import ASSETS

# Fields of the real APIs' answers that are always the same in the rehearsal; Vast.ai's names.
FIXED = json.loads((ASSETS / "rehearsal_answers.json").read_text())
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_Handled = TypeVar("_Handled", bound=Callable[..., Awaitable[web.StreamResponse]])


class Refusal(Exception):
    """A request that is not granted; each door tells it in its own provider's form.

    Args:
        status: HTTP status code.
        error: what kind of refusal it is, as Vast.ai names it.
        what: the sentence for whoever asked.
    """


def reply(data: Any, status: int = 200, content_type: str = "application/json") -> web.Response:
    """JSON under the bare content type: the ``vastai`` program refuses one with a charset."""
    return web.Response(body=json.dumps(data).encode(), status=status, content_type=content_type)


def route(*lines: str) -> Callable[[_Handled], _Handled]:
    """Mark a method as what answers ``"METHOD /path"``, with and without the slash at the end."""

    def mark(handler: _Handled) -> _Handled:
        handler.__dict__["lines"] = [f"{line}{{_:/?}}".split() for line in lines]
        return handler

    return mark


def routes(api: object) -> list[web.RouteDef]:
    """Every route that a method of ``api`` is marked with."""
    return [
        web.route(method, path, handler)
        for _, handler in inspect.getmembers(api, inspect.ismethod)
        for method, path in getattr(handler, "lines", ())
    ]


async def json_object(request: web.Request) -> dict[str, Any]:
    """The request's body; an absent one counts as empty."""
    return await request.json() if request.can_read_body else {}


async def forward(request: web.Request, socket: Path, path: str, body: bytes) -> web.StreamResponse:
    """Send a request on to the server behind a Unix socket, and its answer back as it comes.

    Args:
        request: what came in.
        socket: the socket that stands for the machine's port.
        path: what to ask for there, without the leading slash.
        body: the request's own, or what is sent in its place.
    """
    connector = aiohttp.UnixConnector(path=str(socket))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.request(
            request.method,
            f"http://machine/{path}",
            params=request.query,
            headers=_passed_on(request.headers),
            data=body,
            timeout=aiohttp.ClientTimeout(total=None),
        ) as answer,
    ):
        response = web.StreamResponse(status=answer.status, headers=_passed_on(answer.headers))
        await response.prepare(request)
        async for piece in answer.content.iter_any():
            await response.write(piece)
        return response


def _passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in headers.items() if k.lower() in ("authorization", "content-type")}
