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

from helpers import settings as settings_module
from helpers.rehearsal.faults import FAULTS
from helpers.rehearsal.keys_api import KeysAPI
from helpers.rehearsal.market import Market
from helpers.rehearsal.runpod_api import RunPodAPI
from helpers.rehearsal.vast_api import VastAPI, refusal, reply


async def serve() -> None:
    """Answer on loopback until told to stop or left idle; then leave nothing behind."""
    settings = settings_module.load()
    home = settings.rehearsal_home
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    home.chmod(0o700)
    token, finished = secrets.token_hex(32), asyncio.Event()
    market, keys = Market(settings), KeysAPI()
    used = time.monotonic()

    @web.middleware
    async def guard(request: web.Request, handler) -> web.StreamResponse:
        nonlocal used
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        # A log is fetched by its unguessable link alone, as from the real market's storage; what
        # goes through the proxy is let in, or not, by the model server's own key.
        if request.path.startswith(("/logs/", "/proxy/")) or own_machine(request, given):
            return await handler(request)
        owner = hmac.compare_digest(given.encode(), token.encode())
        if not owner and (no := keys.refuses(request, given)) is not None:
            return no
        used = time.monotonic()
        if request.path.startswith("/rehearsal"):
            return await handler(request)
        if (answer := await market.faults.before(request)) is not None:
            return answer
        try:
            answer = await handler(request)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            return refusal(400, "invalid_args", f"{type(error).__name__}: {error}")
        market.faults.after(request)
        return answer

    def own_machine(request: web.Request, given: str) -> bool:
        """Is this a machine that speaks of itself, with the key made for it alone?"""
        return any(
            hmac.compare_digest(given.encode(), rental.api_key.encode())
            and request.path.rstrip("/").endswith((f"/instances/{number}", f"/pods/{number}"))
            for number, rental in market.rentals.items()
        )

    async def stop(request: web.Request) -> web.Response:
        finished.set()
        return reply({"success": True})

    async def arm(request: web.Request) -> web.Response:
        """Arm a fault; see ``faults.py``."""
        name = request.match_info["name"]
        if name not in FAULTS:
            return refusal(404, "not_found", f"no fault {name}")
        market.provoke(name)
        return reply({"success": True, "fault": FAULTS[name]})

    async def health(request: web.Request) -> web.Response:
        armed = dict(+market.faults.armed)
        return reply({"rehearsal": True, "pid": os.getpid(), "armed": armed})

    app = web.Application(middlewares=[guard])
    app.add_routes(VastAPI(market).routes())
    app.add_routes(keys.routes())
    app.add_routes(RunPodAPI(market).routes())
    app.add_routes(
        [
            web.get("/rehearsal", health),
            web.post("/rehearsal/stop", stop),
            web.post("/rehearsal/faults/{name}", arm),
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    market.url = f"http://{host}:{port}"
    await market.resume()

    file = home / "server.json"
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        server = {"url": market.url, "token": token, "pid": os.getpid()}
        json.dump(server | {"engine": settings.engine}, out)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, finished.set)
    while not finished.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(finished.wait(), timeout=1)
        market.meter()
        if any(market.connections.values()):
            used = time.monotonic()
        if time.monotonic() - used > settings.rehearsal_idle_s:
            finished.set()
    file.unlink(missing_ok=True)
    await market.close()
    await runner.cleanup()


def main() -> None:
    """Run at most one server for a state folder."""
    home = settings_module.load().rehearsal_home
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with FileLock(home / "server.lock", timeout=0):
            asyncio.run(serve())
    except Timeout:
        raise SystemExit("a rehearsal is running already") from None


if __name__ == "__main__":
    main()
