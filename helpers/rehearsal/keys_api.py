"""API keys with few rights, made and deleted as at Vast.ai; the rehearsal holds them to these."""

import hmac
import itertools
import re
import secrets
from dataclasses import dataclass, field

from aiohttp import web

from helpers.rehearsal.vast_api import refusal, reply

# The right that a request needs, after Vast.ai's documentation of permissions; first match counts.
_NEEDED = (
    ("POST", r"/bundles", "misc"),
    ("GET", r"/(users|ssh|auth)\b", "user_read"),
    ("(POST|DELETE)", r"/ssh\b", "user_write"),
    ("GET", r"/charges", "billing_read"),
    ("GET", r"/instances\b", "instance_read"),
    ("PUT", r"/instances/request_logs", "instance_read"),
    ("(PUT|POST|DELETE)", r"/(asks|instances)\b", "instance_write"),
    ("GET", r"/template", "misc"),
)


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key: its name, its text and what it may do."""

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
        """Every route, with and without the trailing slash that the SDK sends."""
        table = [
            ("POST", "/api/v0/auth/apikeys", self.create),
            ("GET", "/api/v0/auth/apikeys", self.show),
            ("DELETE", "/api/v0/auth/apikeys/{id}", self.delete),
        ]
        return [
            web.route(method, path + slash, handler)
            for method, path, handler in table
            for slash in ("", "/")
        ]

    def refuses(self, request: web.Request, given: str) -> web.Response | None:
        """The answer to a request whose key may not make it; None when it may."""
        for key in self._keys.values():
            if hmac.compare_digest(given.encode(), key.text.encode()):
                right = needed(request.method, request.path)
                if right in key.rights:
                    return None
                return refusal(403, "forbidden", f"this key lacks the right {right or 'for it'}")
        return refusal(401, "auth_error", "Invalid user key")

    async def create(self, request: web.Request) -> web.Response:
        """A new key; its text is told this once."""
        body = await request.json()
        rights = body.get("permissions", {}).get("api")
        if not isinstance(rights, dict) or not rights:
            return refusal(400, "invalid_permissions", 'rights look like {"api": {"misc": {}}}')
        key, number = Key(name=str(body["name"]), rights=frozenset(rights)), next(self._ids)
        self._keys[number] = key
        return reply({"id": number, "key": key.text, "permissions": body["permissions"]})

    async def show(self, request: web.Request) -> web.Response:
        """All keys, without their texts."""
        rows = [
            {"id": number, "user_id": 1, "name": key.name, "rights": ",".join(sorted(key.rights))}
            for number, key in self._keys.items()
        ]
        return reply({"apikeys": rows})

    async def delete(self, request: web.Request) -> web.Response:
        """From now on nobody gets in with it."""
        if self._keys.pop(int(request.match_info["id"]), None) is None:
            return refusal(404, "not_found", "API Key not found.")
        return reply("Successfully Deleted API Key")


def needed(method: str, path: str) -> str | None:
    """The right a request needs; None for one that the account's own key alone may make.

    >>> needed("DELETE", "/api/v0/instances/7001/")
    'instance_write'
    """
    for methods, pattern, right in _NEEDED:
        if re.fullmatch(methods, method) and re.match(rf"/api/v\d{pattern}", path):
            return right
    return None
