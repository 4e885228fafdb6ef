"""Bad luck to order: what goes wrong on a real market, provoked in the rehearsal.

``python -m helpers rehearse --fault NAME`` arms a fault once. Those of the API happen at the next
call, those of a machine at its next boot or, where it says "now", to every machine that runs.
"""

import asyncio
import re
from collections import Counter

from aiohttp import web

from helpers.rehearsal.web_api import Refusal

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
_REFUSALS = {"api_401": (401, "auth_error", "Invalid user key"), "api_404": (404, "not_found", "")}
_BROKEN = {
    "api_429": (429, "API requests too frequent: endpoint threshold=4.5"),
    "api_500": (500, "Internal Server Error"),
    "api_malformed": (200, "<html>maintenance</html>"),
}


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
        """What an armed fault of the API answers in the service's place, if one is armed.

        Raises:
            Refusal: when the fault is one.
        """
        if self.take("api_slow"):
            await asyncio.sleep(3)
        if self.take("api_cut"):
            return _cut(request)
        for name, refusal in _REFUSALS.items():
            if self.take(name):
                raise Refusal(*refusal)
        for name, (status, text) in _BROKEN.items():
            if self.take(name):
                return web.Response(status=status, text=text, headers={"Retry-After": "1"})
        return None

    def after(self, request: web.Request) -> None:
        """Lose the answer of a rental that was made."""
        creates = re.match("PUT /api/v0/asks/|POST /v2/pods/?$", f"{request.method} {request.path}")
        if creates and self.take("create_lost"):
            _cut(request)


def _cut(request: web.Request) -> web.Response:
    if request.transport:
        request.transport.abort()
    return web.Response()
