"""API keys with few rights, made and deleted as at Vast.ai; the rehearsal holds them to these."""

import re
import secrets
from typing import Any

from aiohttp import web

from helpers.rehearsal.web_api import FIXED, Refusal, json_object, reply, route

# The right that a request needs, after Vast.ai's documentation of permissions; first match counts.
# What matches nothing, only the account's own key may ask for.
_NEEDED = FIXED["vast_rights"]


class KeysAPI:
    """Handlers, and the judge of requests that come with such a key.

    Keys live as long as the server does, as its own token. Only that token makes and deletes them.
    """

    def __init__(self) -> None:
        self._keys: dict[str, dict[str, Any]] = {}  # a key's text, and what a list shows of it

    def check(self, request: web.Request, given: str) -> None:
        """Let a request through, if its key may make it.

        Raises:
            Refusal: when there is no such key, or it lacks the right.
        """
        if given not in self._keys:
            raise Refusal(401, "auth_error", "Invalid user key")
        asked = f"{request.method} {request.path}"
        right = next((right for rule, right in _NEEDED.items() if re.match(rule, asked)), None)
        if right not in self._keys[given]["rights"].split(","):
            raise Refusal(403, "forbidden", f"this key lacks the right {right or 'for it'}")

    @route("POST /api/v0/auth/apikeys")
    async def create(self, request: web.Request) -> web.Response:
        """A new key; its text is told this once."""
        body = await json_object(request)
        if not (rights := ",".join(sorted((body.get("permissions") or {}).get("api") or {}))):
            raise Refusal(400, "missing_permissions", "permissions.api names no right")
        number, text = secrets.randbelow(2**31), secrets.token_hex(32)
        self._keys[text] = {"id": number, "user_id": 1, "name": body["name"], "rights": rights}
        return reply({"id": number, "key": text, "permissions": body["permissions"]})

    @route("GET /api/v0/auth/apikeys")
    async def show(self, request: web.Request) -> web.Response:
        """All keys, without their texts."""
        return reply({"apikeys": list(self._keys.values())})

    @route("DELETE /api/v0/auth/apikeys/{id}")
    async def delete(self, request: web.Request) -> web.Response:
        """From now on nobody gets in with it."""
        number = request.match_info["id"]
        left = {text: row for text, row in self._keys.items() if str(row["id"]) != number}
        if left == self._keys:
            raise Refusal(404, "not_found", "API Key not found.")
        self._keys = left
        return reply("Successfully Deleted API Key")
