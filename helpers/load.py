"""Load a server with simulated customers and record every request.

The requests are made by ``helpers.generator`` in a process of its own, so that neither a busy
notebook nor the drawing of its progress can disturb a clock read; this module starts it, follows
it and keeps its records in a file as they come.
"""

import asyncio
import json
import os
import platform
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

from helpers import metrics
from helpers.arrivals import (
    Arrivals,
    ClosedLoop,
    Gamma,
    Interval,
    Poisson,
    Ramp,
    Replay,
    to_spec,
)
from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.live import Progress
from helpers.records import Record, Run
from helpers.workload import Lengths, Prompts, Synthetic, Workload

__all__ = [
    "ClosedLoop", "Gamma", "Interval", "Lengths", "Poisson", "Prompts", "Ramp", "Record", "Replay",
    "Run", "Synthetic", "run", "sweep",
]  # fmt: skip

READY_S = 60.0  # a generator that is not ready by then never will be


async def run(
    endpoint: Endpoint,
    workload: Workload,
    arrivals: Arrivals,
    *,
    requests: int | None = None,
    duration_s: float | None = None,
    path: str | Path | None = None,
    label: str = "",
    timeout_s: float = 300.0,
    processes: int = 1,
    server_every_s: float | None = 0.5,
    progress: bool = True,
) -> Run:
    """Make the requests and return a record of each.

    Cancelling (Ctrl-C, the notebook's stop button) ends the run and returns what was measured.

    Args:
        endpoint: the server.
        workload: what is asked.
        arrivals: when it is asked.
        requests: stop after so many.
        duration_s: send nothing new after this time; what is in flight is waited for.
        path: JSONL file of the run; by default a new one in ``runs/``.
        label: name of the run in tables and figures, by default the arrivals in words.
        timeout_s: for one request, from sending it to the end of its answer.
        processes: load-generating processes; one carries thousands of streams.
        server_every_s: time between readings of the server's ``/metrics``; ``None`` for none.
        progress: show a line of progress.

    Raises:
        CourseError: no end is given, the server does not answer, or a generator breaks.
    """
    if requests is None and duration_s is None and not isinstance(arrivals, Replay):
        raise CourseError("the run has no end", "give requests=, duration_s= or both")
    if isinstance(arrivals, Replay) and requests is None:
        requests = len(arrivals.times_s)
    if isinstance(arrivals, ClosedLoop):
        processes = min(processes, arrivals.users)
    spec = {
        "base_url": endpoint.base_url,
        "route": "/chat/completions",
        "model": endpoint.model,
        "api_key": endpoint.api_key,
        "workload": to_spec(workload),
        "arrivals": to_spec(arrivals),
        "requests": requests,
        "duration_s": duration_s,
        "timeout_s": timeout_s,
        "transport": "auto",
    }
    header = _header(endpoint, spec, label or str(arrivals), processes)
    file = _File(Path(path) if path else _new_path(header), header)
    bar = Progress(header["label"], requests, duration_s, shown=progress)
    sampler = metrics.Sampler(
        endpoint.origin, endpoint.api_key, server_every_s or 0.5, lambda e: file.add("server", e)
    )
    shards = [_Local({**spec, "shard": [k, processes]}, file, bar) for k in range(processes)]
    cancelled = False
    try:
        await _ready(shards, endpoint)
        if server_every_s:
            await asyncio.to_thread(sampler.start)
        for shard in shards:
            shard.tell("go")
        while any(shard.running for shard in shards):
            await asyncio.sleep(0.02)
            bar.show()
    except (asyncio.CancelledError, KeyboardInterrupt):
        cancelled = True
    finally:
        for shard in shards:
            shard.stop()
        sampler.stop()
        bar.close()
        file.close()
    result = Run.load(file.path)
    broken = [shard for shard in shards if not shard.ended]
    if broken and not cancelled:
        raise CourseError(
            f"the load generator ended before its run: {broken[0].complaint()}",
            f"what was measured so far is in {file.path}",
        )
    return result


async def sweep(
    endpoint: Endpoint,
    workload: Workload,
    *,
    users: tuple[int, ...] = (1, 2, 4, 8, 16),
    requests_per_user: int = 4,
    folder: str | Path | None = None,
    **options,
) -> list[Run]:
    """Run a closed loop for each number of users and return the runs.

    Args:
        endpoint: the server.
        workload: what is asked.
        users: numbers of users, one run each.
        requests_per_user: length of each run, unless ``requests`` or ``duration_s`` is given.
        folder: where the runs' files go, by default ``runs/``.
        options: as for ``run``.
    """
    runs = []
    for count in users:
        end = {} if options.keys() & {"requests", "duration_s"} else {
            "requests": max(8, requests_per_user * count)
        }  # fmt: skip
        path = Path(folder) / f"{count:04d}_users.jsonl" if folder else None
        arrivals = ClosedLoop(users=count)
        runs.append(await run(endpoint, workload, arrivals, path=path, **end, **options))
        if runs[-1].interrupted:
            break
    return runs


async def _ready(shards: list["_Local"], endpoint: Endpoint) -> None:
    deadline = time.monotonic() + READY_S
    while not all(shard.ready for shard in shards):
        await asyncio.sleep(0.01)
        for shard in shards:
            if not shard.running or time.monotonic() > deadline:
                raise CourseError(f"the load generator did not start: {shard.complaint()}")
    if unreachable := next((shard.unreachable for shard in shards if shard.unreachable), ""):
        raise CourseError(
            f"{_public(endpoint.base_url)} does not answer: {unreachable}",
            "is the server up and the tunnel open?",
        )


class _File:
    """The run's file; lines of several threads, each written at once."""

    def __init__(self, path: Path, header: dict) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.lock = path, threading.Lock()
        self.file = path.open("wb")
        self.add("run", header)

    def add(self, kind: str, entry: dict) -> None:
        self.write(json.dumps({"type": kind, **entry}).encode() + b"\n")

    def write(self, line: bytes) -> None:
        with self.lock:
            if not self.file.closed:
                self.file.write(line)
                self.file.flush()

    def close(self) -> None:
        with self.lock:
            self.file.close()


class _Local:
    """A generator on this machine and the thread that keeps its lines."""

    def __init__(self, spec: dict, file: _File, bar: Progress) -> None:
        self.file, self.bar = file, bar
        self.ready = self.ended = False
        self.unreachable = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "helpers.generator"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        self.tell(json.dumps(spec))
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()

    @property
    def running(self) -> bool:
        return self.thread.is_alive()

    def tell(self, line: str) -> None:
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; `complaint` tells why

    def stop(self) -> None:
        """End it if it still runs, waiting for its last lines."""
        if self.running:
            self.tell("stop")
            self.thread.join(5)
        if self.process.poll() is None and self.thread.is_alive():
            self.process.kill()
            self.thread.join()
        self.process.stdin.close()
        self.process.wait()

    def complaint(self) -> str:
        """Return the last line it wrote to its standard error."""
        self.process.kill()
        lines = self.process.stderr.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self.process.wait()}"

    def _follow(self) -> None:
        for line in self.process.stdout:
            if line.startswith(b'{"type":"request"'):
                self.file.write(line)
                self.bar.count(line)
            elif line.startswith(b'{"type":"ready"'):
                self.unreachable = json.loads(line)["error"]
                self.ready = True
            elif line.startswith(b'{"type":"end"'):
                self.file.write(line)
                self.ended = True


def _header(endpoint: Endpoint, spec: dict, label: str, processes: int) -> dict:
    """Return what a reader of the file must know; no key, no password."""
    settings = {key: value for key, value in spec.items() if key not in ("api_key", "base_url")}
    return {
        "format": 1,
        "label": label,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "endpoint": {
            "base_url": _public(endpoint.base_url),
            "model": endpoint.model,
            "engine": endpoint.engine,
            "hardware": endpoint.hardware,
            "source": endpoint.source,
            "title": endpoint.title,
        },
        **settings,
        "processes": processes,
        "client": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "versions": {name: _version(name) for name in ("llm-serving-course", "uvloop")},
        },
    }


def _public(base_url: str) -> str:
    url = urlsplit(base_url)
    return url._replace(netloc=url.netloc.rpartition("@")[2], query="").geturl()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _new_path(header: dict) -> Path:
    words = "".join(c if c.isalnum() else "-" for c in header["label"].lower())[:40].strip("-")
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    folder = os.environ.get("RUNS_DIR") or Path(__file__).parents[1] / "runs"
    return Path(folder) / f"{stamp}_{words}.jsonl"
