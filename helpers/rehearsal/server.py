"""The rehearsal's process: ``python -m helpers.rehearsal.server``, started by ``ensure()``."""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import time
from http import HTTPStatus

from aiohttp import web
from filelock import FileLock
from pydantic import ValidationError

from helpers.rehearsal.keys_api import KeysAPI
from helpers.rehearsal.market import Market
from helpers.rehearsal.runpod_api import RunPodAPI
from helpers.rehearsal.vast_api import VastAPI
from helpers.rehearsal.web_api import Handler, Refusal, reply, route, routes
from helpers.settings import Settings, read

_WRONG = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


class Rehearsal:
    """Both doors of one market, behind one guard.

    Args:
        settings: where state is kept, what is served, and after which idle time it ends.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.market, self.keys = Market(settings), KeysAPI()
        self.token, self.finished = secrets.token_hex(32), asyncio.Event()
        self.used = time.monotonic()

    async def serve(self) -> None:
        """Answer on loopback and bill until told to stop or left idle; then clean up."""
        app = web.Application(middlewares=[self.guard])
        for api in (VastAPI(self.market), RunPodAPI(self.market), self.keys, self):
            app.add_routes(routes(api))
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.market.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        for rental in self.market.books.rentals.values():
            if rental.intended == "running":  # when this process crashed: booted, as a host does
                self.market.run(rental)
        file = self.settings.rehearsal_home / "server.json"
        server = {"url": self.market.url, "token": self.token, "pid": os.getpid()}
        file.write_text(json.dumps(server | {"engine": self.settings.engine}))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self.finished.set)
        while not self.finished.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.finished.wait(), timeout=1)
            self.market.meter()
            if any(machine.connections for machine in self.market.machines.values()):
                self.used = time.monotonic()
            if time.monotonic() - self.used > self.settings.rehearsal_idle_s:
                self.finished.set()
        file.unlink(missing_ok=True)
        await self.market.close()
        await runner.cleanup()

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let in who may come in, add bad luck, and tell refusals in the door's own form."""
        try:
            given = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if self._needs_no_key(request.path, given):
                return await handler(request)
            if not secrets.compare_digest(given.encode(), self.token.encode()):
                self.keys.check(request, given)
            self.used = time.monotonic()
            if request.path.startswith("/rehearsal"):
                return await handler(request)
            self.market.meter()
            return await self.market.faults.around(request, handler)
        except (Refusal, web.HTTPException, *_WRONG) as error:
            return _refusal(request, error)

    def _needs_no_key(self, path: str, given: str) -> bool:
        """Is this a request that the account's key has nothing to do with?

        A log is fetched by its unguessable link alone, as from the real market's storage; what goes
        through the proxy is let in, or not, by the model server's own key; a machine may speak of
        itself, with the key made for it alone.
        """
        rental = self.market.books.rentals.get(path.rstrip("/").rpartition("/")[2])
        if rental and path.startswith(("/api/v0/instances/", "/v2/pods/")):
            return secrets.compare_digest(given.encode(), rental.api_key.encode())
        return path.startswith(("/logs/", "/proxy/"))

    @route("GET /rehearsal")
    async def health(self, request: web.Request) -> web.Response:
        """That it runs, and which bad luck is armed."""
        return reply({"rehearsal": True, "armed": dict(+self.market.faults.armed)})

    @route("POST /rehearsal/faults/{name}")
    async def arm(self, request: web.Request) -> web.Response:
        """Arm a fault; see ``faults.py``."""
        self.market.provoke(request.match_info["name"])
        return reply({"success": True})


def _refusal(request: web.Request, error: Exception) -> web.Response:
    """What went wrong with a request, as RunPod (RFC 9457) or, on any other path, Vast.ai tells."""
    status, kind, what = 400, "invalid_args", f"{type(error).__name__}: {error}"
    if isinstance(error, Refusal):
        status, kind, what = error.args
    elif isinstance(error, web.HTTPException):  # no such route, or not with this method
        what = f"{request.method} {request.path} is not offered here: this is the rehearsal"
        status, kind = error.status, "not_found"
    elif isinstance(error, ValidationError):
        wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        what = "; ".join(wrong)
    if request.path.startswith(("/v2/", "/graphql")):
        body = {"title": HTTPStatus(status).phrase, "status": status, "detail": what}
        return reply(body, status, "application/problem+json")
    return reply({"success": False, "error": kind, "msg": what}, status)


def main() -> None:
    """Run one server for a state folder, when the one before has ended."""
    settings = read()
    os.umask(0o077)  # what it writes is for its owner's eyes
    settings.rehearsal_home.chmod(0o700)
    with FileLock(settings.rehearsal_home / "server.lock"):
        asyncio.run(Rehearsal(settings).serve())


if __name__ == "__main__":
    main()
