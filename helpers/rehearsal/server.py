"""The rehearsal's process: ``python -m helpers.rehearsal.server``, started by ``ensure()``."""

import asyncio
import contextlib
import hmac
import json
import os
import secrets
import signal
import time

from aiohttp import web
from filelock import FileLock, Timeout
from pydantic import ValidationError

from helpers import settings as settings_module
from helpers.rehearsal.keys_api import KeysAPI
from helpers.rehearsal.market import Market
from helpers.rehearsal.runpod_api import RunPodAPI
from helpers.rehearsal.vast_api import VastAPI
from helpers.rehearsal.web_api import Handler, Refusal, reply, routes
from helpers.settings import Settings

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
        """Answer on loopback until told to stop or left idle; then leave nothing behind."""
        app = web.Application(middlewares=[self.guard])
        for api in (VastAPI(self.market), RunPodAPI(self.market), self.keys, self):
            app.add_routes(api.routes())
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        self.market.url = f"http://{host}:{port}"
        self.market.resume()
        file = self.settings.rehearsal_home / "server.json"
        server = {"url": self.market.url, "token": self.token, "pid": os.getpid()}
        file.write_text(json.dumps(server | {"engine": self.settings.engine}))
        await self._until_finished()
        file.unlink(missing_ok=True)
        await self.market.close()
        await runner.cleanup()

    async def _until_finished(self) -> None:
        """Bill each second, until a signal or too long without use."""
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

    def routes(self) -> list[web.RouteDef]:
        """What only the course itself asks, and no real provider has."""
        return routes(
            ("GET /rehearsal", self.health),
            ("POST /rehearsal/faults/{name}", self.arm),
        )

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let in who may come in, add bad luck, and tell refusals in the door's own form."""
        try:
            given = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if self._needs_no_key(request.path, given):
                return await handler(request)
            if not _same(given, self.token):
                self.keys.check(request, given)
            self.used = time.monotonic()
            if request.path.startswith("/rehearsal"):
                return await handler(request)
            self.market.meter()
            if (answer := await self.market.faults.before(request)) is not None:
                return answer
            done = await handler(request)
            self.market.faults.after(request)
            return done
        except (Refusal, web.HTTPException, *_WRONG) as error:
            return _refusal(request, error).answer(request.path)

    def _needs_no_key(self, path: str, given: str) -> bool:
        """Is this a request that the account's key has nothing to do with?

        A log is fetched by its unguessable link alone, as from the real market's storage; what goes
        through the proxy is let in, or not, by the model server's own key; a machine may speak of
        itself, with the key made for it alone.
        """
        rental = self.market.books.rentals.get(path.rstrip("/").rpartition("/")[2])
        return path.startswith(("/logs/", "/proxy/")) or (
            rental is not None
            and path.startswith(("/api/v0/instances/", "/v2/pods/"))
            and _same(given, rental.api_key)
        )

    async def health(self, request: web.Request) -> web.Response:
        """That it runs, and which bad luck is armed."""
        armed = dict(+self.market.faults.armed)
        return reply({"rehearsal": True, "pid": os.getpid(), "armed": armed})

    async def arm(self, request: web.Request) -> web.Response:
        """Arm a fault; see ``faults.py``."""
        self.market.provoke(request.match_info["name"])
        return reply({"success": True})


def _refusal(request: web.Request, error: Exception) -> Refusal:
    """What went wrong with a request, as a refusal."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, web.HTTPException):  # no such route, or not with this method
        what = f"{request.method} {request.path} is not offered here: this is the rehearsal"
        return Refusal(error.status, "not_found", what)
    if isinstance(error, ValidationError):
        wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        return Refusal(400, "invalid_args", "; ".join(wrong))
    return Refusal(400, "invalid_args", f"{type(error).__name__}: {error}")


def _same(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode(), secret.encode())


def main() -> None:
    """Run at most one server for a state folder."""
    settings = settings_module.read()
    os.umask(0o077)  # what it writes is for its owner's eyes
    settings.rehearsal_home.chmod(0o700)
    try:
        with FileLock(settings.rehearsal_home / "server.lock", timeout=0):
            asyncio.run(Rehearsal(settings).serve())
    except Timeout:
        raise SystemExit("a rehearsal is running already") from None


if __name__ == "__main__":
    main()
