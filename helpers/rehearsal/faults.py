"""Bad luck to order: what goes wrong on a real market, provoked in the rehearsal.

``python -m helpers rehearse --fault NAME`` arms a fault once. Those of the API happen at the next
call, those of a machine at its next boot or, where it says "now", to every machine that runs.
"""

import asyncio
from collections import Counter

from aiohttp import web

FAULTS = {
    "api_401": "the next call is refused: the key is not accepted",
    "api_404": "the next call finds nothing",
    "api_429": "the next call is too frequent, in plain text, with Retry-After",
    "api_500": "the next call meets a broken service",
    "api_cut": "the next call gets no answer: the line is cut",
    "api_slow": "the next call is answered after three seconds",
    "api_malformed": "the next call gets an answer that is not JSON",
    "create_lost": "the next rental is made, but its answer is lost",
    "offer_taken": "the next offer to be rented was taken by somebody else",
    "no_credit": "the next rental is refused for lack of credit",
    "stuck": "the next machine stays in loading for ever",
    "image_failure": "the next machine's container does not start: the driver is too old",
    "model_failure": "the next model server cannot download its model",
    "out_of_memory": "the next model server runs out of GPU memory",
    "ssh_late": "the next machine's SSH server comes up ten seconds after the machine",
    "host_key": "now: every machine reboots with another host key",
    "tunnel_drop": "now: every SSH connection is cut",
    "outbid": "now: somebody bids more, every interruptible machine is stopped",
    "host_lost": "now: every machine's host goes offline",
}
NOW = {"host_key", "tunnel_drop", "outbid", "host_lost"}


class Faults:
    """Which faults are armed, and how often each will still happen."""

    def __init__(self) -> None:
        self.armed: Counter[str] = Counter()

    def take(self, name: str) -> bool:
        """Is this fault armed? Then once less from now on."""
        if self.armed[name] < 1:
            return False
        self.armed[name] -= 1
        return True

    async def before(self, request: web.Request) -> web.Response | None:
        """What an armed fault of the API answers in the service's place, if one is armed."""
        creates = _creates(request)
        if self.take("api_slow"):
            await asyncio.sleep(3)
        if self.take("api_cut"):
            request.transport.abort()
            return web.Response()
        plain = {
            "api_401": (
                401,
                '{"success": false, "error": "auth_error", "msg": "Invalid user key"}',
            ),
            "api_404": (404, '{"success": false, "error": "not_found", "msg": "not found"}'),
            "api_429": (429, "API requests too frequent: endpoint threshold=4.5"),
            "api_500": (500, "Internal Server Error"),
            "api_malformed": (200, "<html>maintenance</html>"),
        }
        for name, (status, text) in plain.items():
            if self.take(name):
                kind = "application/json" if text[0] == "{" or status == 200 else "text/plain"
                retry = {"Retry-After": "1"} if status == 429 else {}
                return web.Response(status=status, text=text, content_type=kind, headers=retry)
        if creates and self.take("offer_taken"):
            words = "There are no instances currently available: no_such_ask"
            both = f'{{"success": false, "msg": "{words}", "title": "Bad Request", "status": 400}}'
            return web.Response(status=400, text=both, content_type="application/json")
        if creates and self.take("no_credit"):
            words = "Your account lacks credit"
            both = f'{{"success": false, "msg": "{words}", "title": "{words}", "status": 402}}'
            return web.Response(status=402, text=both, content_type="application/json")
        return None

    def after(self, request: web.Request) -> None:
        """Lose the answer of a rental that was made."""
        if _creates(request) and self.take("create_lost"):
            request.transport.abort()


def _creates(request: web.Request) -> bool:
    return (request.method, request.path.rstrip("/")) == ("POST", "/v2/pods") or (
        request.method == "PUT" and request.path.startswith("/api/v0/asks/")
    )
