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

from helpers.rehearsal.web_api import Handler
from helpers.settings import ASSETS

_TABLE = (ASSETS / "rehearsal_faults.csv").read_text().splitlines()
_ROWS = {row["name"]: row for row in csv.DictReader(_TABLE)}
FAULTS = {name: row["what"] for name, row in _ROWS.items()}
ANSWERS = {name: row["answer"] for name, row in _ROWS.items()}


class Faults:
    """Which faults are armed, and how often each will still happen."""

    def __init__(self) -> None:
        self.armed: Counter[str] = Counter()

    def take(self, name: str) -> bool:
        """Is this fault armed? Then once less from now on."""
        taken = self.armed[name] > 0
        self.armed[name] -= taken
        return taken

    async def around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let the service answer, or in its place what is armed for the API."""
        if self.take("api_slow"):
            await asyncio.sleep(3)
        for name, row in _ROWS.items():
            if row["status"] and self.take(name):
                again = {"Retry-After": "1"}
                return web.Response(status=int(row["status"]), text=row["answer"], headers=again)
        cut = self.take("api_cut")
        answer = web.Response() if cut else await handler(request)
        creates = re.match("PUT /api/v0/asks/|POST /v2/pods/?$", f"{request.method} {request.path}")
        if (cut or (creates and self.take("create_lost"))) and request.transport:
            request.transport.abort()
        return answer
