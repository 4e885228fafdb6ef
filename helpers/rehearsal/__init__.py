"""The free local marketplace: it starts itself on first use and stops when nobody needs it.

This file starts, finds and stops its process (``server``). Behind that stand one ``market`` with
its offers, contracts and pretend money, and two doors to it: ``vast_api`` (with ``keys_api``) and
``runpod_api``, over what ``web_api`` gives both. A rented ``machine`` is a process of its own
(``instance``: a real SSH server), in which ``engine`` serves the ``model`` with llama.cpp
(``tool_choice`` before it when functions are called) or ``engine_vllm`` with vLLM. ``faults`` is
bad luck to order.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field

import requests
from filelock import FileLock, Timeout

from helpers.errors import CourseError, writing
from helpers.rehearsal import model
from helpers.settings import Settings

START_TIMEOUT_S, STOP_TIMEOUT_S = 30.0, 15.0
# What its process reads from the environment, as these settings say.
_TOLD = ("rehearsal_home", "rehearsal_idle_s", "model_cache", "local_model", "engine", "vllm_env")


@dataclass(frozen=True)
class Server:
    """Where the rehearsal answers: its URL, and the random token that is its API key.

    ``engine`` is what serves the model on the machines that it rents out.
    """

    url: str
    token: str = field(repr=False)
    pid: int = 0
    engine: str = "llamacpp"

    def call(self, method: str, path: str, timeout_s: float = 5.0) -> requests.Response:
        """One authorised request to the rehearsal itself."""
        headers = {"Authorization": f"Bearer {self.token}"}
        return requests.request(method, self.url + path, headers=headers, timeout=timeout_s)


def running(settings: Settings) -> Server | None:
    """The rehearsal that runs now, if one does."""
    try:
        server = Server(**json.loads((settings.rehearsal_home / "server.json").read_text()))
        return server if server.call("GET", "/rehearsal").ok else None
    except (OSError, ValueError, TypeError, requests.RequestException):
        return None


def holds_rentals(settings: Settings) -> bool:
    """Is something rented in the rehearsal, whether or not its server runs?"""
    state = settings.rehearsal_home / "state.json"
    return state.exists() and bool(json.loads(state.read_text())["rentals"])


def ensure(settings: Settings) -> Server:
    """The running rehearsal, started first when there is none; its model is fetched first.

    Raises:
        CourseError: when it does not start, its model or engine cannot be had, or the one that
            runs was started with another ``ENGINE``.
    """
    home = settings.rehearsal_home
    with writing(home, "REHEARSAL_HOME"):
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=home) as space:
            space.write(bytes(1 << 20))  # what its books and logs need at first
    with FileLock(home / "start.lock"):  # two notebooks may come at once
        server = running(settings) or _start(settings)
    if server.engine != settings.engine:
        what = f"the running rehearsal serves with {server.engine}, and ENGINE is {settings.engine}"
        raise CourseError(what, "python -m helpers rehearse --stop, then run it again")
    return server


def _start(settings: Settings) -> Server:
    model.path(settings)
    file = settings.rehearsal_home / "server.log"
    with file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "helpers.rehearsal.server"],
            env=os.environ | {name.upper(): str(getattr(settings, name)) for name in _TOLD},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # several notebooks share it: it outlives this kernel
        )
    deadline, server = time.monotonic() + START_TIMEOUT_S, None
    try:
        while time.monotonic() < deadline and process.poll() is None:
            if server := running(settings):
                return server
            time.sleep(0.1)
    finally:
        if not server:  # stopped by the reader, too: it must not come up later
            process.kill()
    said = file.read_text(errors="replace").strip().rpartition("\n")[2]
    what = f"the rehearsal did not start: {said or 'no word why'} (all of its log: {file})"
    hint = "run it again; `python -m helpers rehearse --reset` forgets what an old one has left"
    raise CourseError(what, hint)


def provoke(settings: Settings, fault: str) -> None:
    """Arm one of ``helpers.rehearsal.faults.FAULTS`` in the running rehearsal.

    Raises:
        CourseError: when no rehearsal runs.
    """
    server = running(settings)
    if server is None:
        raise CourseError("no rehearsal is running", "python -m helpers rehearse --start")
    server.call("POST", f"/rehearsal/faults/{fault}").raise_for_status()


def stop(settings: Settings) -> bool:
    """End the rehearsal, its machines and its rentals.

    Returns:
        True when one was running.

    Raises:
        CourseError: when its process does not end.
    """
    server = running(settings)
    if server is None:
        return False
    os.kill(server.pid, signal.SIGTERM)
    try:  # it ends all that it has started, and gives its lock back last
        with FileLock(settings.rehearsal_home / "server.lock", timeout=STOP_TIMEOUT_S):
            return True
    except Timeout:
        what = f"the rehearsal (process {server.pid}) does not stop"
        raise CourseError(what, f"end it with: kill -9 {server.pid}") from None


def reset(settings: Settings) -> None:
    """Stop the rehearsal and forget all of it: full credit again, nothing spent, no rentals."""
    stop(settings)
    home = settings.rehearsal_home
    for file in (home / "state.json", *home.glob("rentals-rehearsal*.json")):
        file.unlink(missing_ok=True)
