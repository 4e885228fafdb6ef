"""Bad luck to order: what goes wrong on a real market, provoked in the rehearsal.

``python -m helpers rehearse --fault NAME`` arms a fault once. Those of the API happen at the next
call, those of a machine at its next boot or, where it says "now", to every machine that runs. The
table ``assets/rehearsal_faults.csv`` says what each does, and what a broken API answers.
"""

import asyncio
import csv
import re
from collections import Counter

from aiohttp import web

from helpers.settings import ASSETS

with (ASSETS / "rehearsal_faults.csv").open(newline="") as _file:
    _ROWS = {row["name"]: row for row in csv.DictReader(_file)}
FAULTS = {name: row["what"] for name, row in _ROWS.items()}
ANSWERS = {name: row["answer"] for name, row in _ROWS.items()}


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
        if self.take("api_slow"):
            await asyncio.sleep(3)
        if self.take("api_cut"):
            return _cut(request)
        for name, row in _ROWS.items():
            if row["status"] and self.take(name):
                again = {"Retry-After": "1"}
                return web.Response(status=int(row["status"]), text=row["answer"], headers=again)
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
