"""API keys with few rights, made and deleted as at Vast.ai; the rehearsal holds them to these."""

import hmac
import itertools
import re
import secrets
from dataclasses import dataclass, field

from aiohttp import web

from helpers.rehearsal.web_api import Refusal, json_object, reply, routes

# The right that a request needs, after Vast.ai's documentation of permissions; first match counts.
_NEEDED = {
    "POST /bundles|GET /template": "misc",
    r"GET /(users|ssh|auth)\b": "user_read",
    r"(POST|DELETE) /ssh\b": "user_write",
    r"GET /instances\b|PUT /instances/request_logs": "instance_read",
    r"(PUT|POST|DELETE) /(asks|instances)\b": "instance_write",
}


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key: its number, its name, its text and what it may do."""

    id: int
    name: str
    rights: frozenset[str]
    text: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)


class KeysAPI:
    """Handlers, and the judge of requests that come with such a key.

    Keys live as long as the server does, as its own token. Only that token makes and deletes them.
    """

    def __init__(self) -> None:
        self._keys: dict[int, Key] = {}
        self._ids = itertools.count(101)

    def routes(self) -> list[web.RouteDef]:
        """Every route."""
        return routes(
            {
                "POST /api/v0/auth/apikeys": self.create,
                "GET /api/v0/auth/apikeys": self.show,
                "DELETE /api/v0/auth/apikeys/{id}": self.delete,
            }
        )

    def check(self, request: web.Request, given: str) -> None:
        """Let a request through, if its key may make it.

        Raises:
            Refusal: when there is no such key, or it lacks the right.
        """
        for key in self._keys.values():
            if hmac.compare_digest(given.encode(), key.text.encode()):
                right = needed(request.method, request.path)
                if right not in key.rights:
                    what = f"this key lacks the right {right or 'for it'}"
                    raise Refusal(403, "forbidden", what)
                return
        raise Refusal(401, "auth_error", "Invalid user key")

    async def create(self, request: web.Request) -> web.Response:
        """A new key; its text is told this once."""
        body = await json_object(request)
        rights = body.get("permissions", {}).get("api")
        if not isinstance(rights, dict) or not rights:
            raise Refusal(400, "invalid_permissions", 'rights look like {"api": {"misc": {}}}')
        key = Key(id=next(self._ids), name=str(body["name"]), rights=frozenset(rights))
        self._keys[key.id] = key
        return reply({"id": key.id, "key": key.text, "permissions": body["permissions"]})

    async def show(self, request: web.Request) -> web.Response:
        """All keys, without their texts."""
        rows = [
            {"id": key.id, "user_id": 1, "name": key.name, "rights": ",".join(sorted(key.rights))}
            for key in self._keys.values()
        ]
        return reply({"apikeys": rows})

    async def delete(self, request: web.Request) -> web.Response:
        """From now on nobody gets in with it."""
        if self._keys.pop(int(request.match_info["id"]), None) is None:
            raise Refusal(404, "not_found", "API Key not found.")
        return reply("Successfully Deleted API Key")


def needed(method: str, path: str) -> str | None:
    """The right a request needs; None for one that the account's own key alone may make.

    >>> needed("DELETE", "/api/v0/instances/7001/")
    'instance_write'
    """
    asked = re.sub(r"^/api/v\d", "", path)
    for pattern, right in _NEEDED.items():
        if asked != path and re.match(pattern, f"{method} {asked}"):
            return right
    return None
