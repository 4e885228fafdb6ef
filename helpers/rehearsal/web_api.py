"""What both doors of the rehearsal's market share: routes, answers, refusals, bodies."""

import json
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Refusal(Exception):
    """A request that is not granted; each door tells it in its own provider's form.

    Args:
        status: HTTP status code.
        error: what kind of refusal it is, as Vast.ai names it.
        what: the sentence for whoever asked.
    """

    def __init__(self, status: int, error: str, what: str) -> None:
        super().__init__(what)
        self.status, self.error, self.what = status, error, what

    def answer(self, path: str) -> web.Response:
        """The refusal as RunPod (RFC 9457) or, on any other path, Vast.ai writes it."""
        if path.startswith(("/v2/", "/graphql")):
            title = HTTPStatus(self.status).phrase
            body = {"title": title, "status": self.status, "detail": self.what}
            return reply(body, self.status, "application/problem+json")
        return reply({"success": False, "error": self.error, "msg": self.what}, self.status)


def reply(data: Any, status: int = 200, content_type: str = "application/json") -> web.Response:
    """JSON under the bare content type: the ``vastai`` program refuses one with a charset."""
    return web.Response(body=json.dumps(data).encode(), status=status, content_type=content_type)


def routes(table: dict[str, Handler]) -> list[web.RouteDef]:
    """Routes from ``{"METHOD /path": handler}``, with and without the slash at the end."""
    both = []
    for line, handler in table.items():
        method, path = line.split()
        both += [web.route(method, path, handler), web.route(method, f"{path}/", handler)]
    return both


async def json_object(request: web.Request) -> dict[str, Any]:
    """The request's body, which must be a JSON object; an absent one counts as empty."""
    try:
        body = await request.json() if request.can_read_body else {}
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Refusal(400, "invalid_args", "the body is no JSON object")
    return body
