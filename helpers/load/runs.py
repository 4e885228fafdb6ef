"""Load a server with simulated customers and record every request.

The requests are made by ``helpers.load.generator`` in a process of its own, so that neither a busy
notebook nor the drawing of its progress can disturb a clock read; this module starts it, follows
it and keeps its records in a file as they come.
"""

import asyncio
import contextlib
import os
import platform
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.load import metrics
from helpers.load.arrivals import (
    Arrivals,
    ClosedLoop,
    Gamma,
    Interval,
    Poisson,
    Ramp,
    Replay,
    to_spec,
)
from helpers.load.live import Live
from helpers.load.workers import RunFile, Shard, on_executor, ready
from helpers.load.workload import Lengths, Prompts, Synthetic, ToolCalls, Workload, unseen
from helpers.measure.capacity import Objective, meets
from helpers.records import Record, Run

if TYPE_CHECKING:
    import paramiko

__all__ = [
    "ClosedLoop", "Gamma", "Interval", "Lengths", "Poisson", "Prompts", "Ramp", "Record", "Replay",
    "Run", "Synthetic", "ToolCalls", "run", "search", "sweep",
]  # fmt: skip


RATE_S = 20.0  # length of a search's runs at a rate


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
    executor: Executor | None = None,
    ssh: "paramiko.SSHClient | None" = None,
    there: str = "",
    server_every_s: float | None = 0.5,
    progress: bool = True,
) -> Run:
    """Make the requests and return a record of each.

    Cancelling (Ctrl-C, the notebook's stop button) ends the run and returns what was measured;
    an executor's workers cannot be stopped, and what they have not returned by then is lost.

    Args:
        endpoint: the server.
        workload: what is asked.
        arrivals: when it is asked.
        requests: stop after so many.
        duration_s: send nothing new after this time; what is in flight is waited for.
        path: JSONL file of the run; by default a new one in the folder ``RUNS_DIR`` or ``runs``.
        label: name of the run in tables and figures, by default the arrivals in words.
        timeout_s: for one request, from sending it to the end of its answer.
        processes: load-generating processes; one carries thousands of streams.
        executor: where these processes run: one task each is submitted to it. For several
            machines, ``dask.distributed.Client(...).get_executor()``; their clocks must agree.
        ssh: a connection to the machine that serves: its GPU is sampled (``nvidia-smi``).
        there: root of the API as that machine sees it, e.g. ``http://127.0.0.1:8000/v1``: the
            requests are made over ``ssh`` from there, so that the reader's own line adds nothing.
        server_every_s: time between readings of the server's ``/metrics``; ``None`` for none.
        progress: show a line of progress.

    Raises:
        CourseError: no end is given, the server does not answer, a generator breaks, or an
            executor has too few free workers.
    """
    if isinstance(arrivals, Replay):
        requests = min(requests or len(arrivals.times_s), len(arrivals.times_s))
    if requests is None and duration_s is None:
        raise CourseError("the run has no end", "give requests=, duration_s= or both")
    above_0 = {"requests": requests, "duration_s": duration_s, "timeout_s": timeout_s}
    for name, value in {**above_0, "processes": processes}.items():
        if value is not None and not value > 0:
            raise CourseError(f"{name} is {value}", f"{name} must be above 0")
    if there and (ssh is None or processes > 1 or executor):
        raise CourseError("there= needs ssh=, and neither processes= nor executor=")
    if isinstance(arrivals, ClosedLoop):
        processes = min(processes, arrivals.users)
    spec = {
        "base_url": there or endpoint.base_url,
        "route": "/chat/completions",
        "model": endpoint.model,
        "api_key": endpoint.api_key,
        "workload": to_spec(workload),
        "arrivals": to_spec(arrivals),
        "requests": requests,
        "duration_s": duration_s,
        "timeout_s": timeout_s,
    }
    header = _header(endpoint, spec, label or str(arrivals), processes)
    file = RunFile(Path(path) if path else _new_path(header), header)
    bar = Live(header["label"], requests, shown=progress)
    samplers = [metrics.ServerSampler(endpoint, server_every_s, file)] if server_every_s else []
    samplers += [metrics.GpuSampler(ssh, file)] if ssh else []
    specs = [{**spec, "shard": [number, processes]} for number in range(processes)]
    parts, cancelled = [], False
    try:
        if executor:
            following = asyncio.ensure_future(
                on_executor(executor, specs, file, bar, header["endpoint"]["base_url"])
            )
        else:
            parts = [
                Shard.there(one, file, bar, ssh) if there else Shard.here(one, file, bar)
                for one in specs
            ]
            await ready(parts, header["endpoint"]["base_url"])
        for sampler in samplers:
            await asyncio.to_thread(sampler.start)
        for part in parts:
            part.tell("go")
        while any(part.running for part in parts) or (executor and not following.done()):
            await asyncio.sleep(0.05)
            bar.show()
            if file.problem:
                break
        if executor and not file.problem:
            following.result()
    except (asyncio.CancelledError, KeyboardInterrupt):
        cancelled = True
    finally:
        if executor:
            following.cancel()
        for part in parts:
            part.stop()
        for sampler in samplers:
            with contextlib.suppress(Exception):  # it adds to the run, and must not cost it
                sampler.stop()
        bar.close()
        file.close()
    if file.problem:
        raise CourseError(
            f"the run was ended: its records could not be written ({file.problem.strerror})",
            f"free some disk space; what was written so far is in {file.path}",
        )
    broken = [part for part in parts if not part.ended]
    if broken and not cancelled:
        raise CourseError(
            f"the load generator ended before its run: {broken[0].complaint()}",
            f"what was measured so far is in {file.path}",
        )
    return Run.load(file.path)


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
        workload: what is asked; unless prompts are given, of another seed in each run.
        users: numbers of users, one run each.
        requests_per_user: length of each run, unless ``requests`` or ``duration_s`` is given.
        folder: where the runs' files go, by default ``runs/``.
        options: as for ``run``.
    """
    runs = []
    for count in users:
        end = _end(count, requests_per_user, options)
        path = Path(folder) / f"{count:04d}_users.jsonl" if folder else None
        work, arrivals = unseen(workload, count), ClosedLoop(users=count)
        runs.append(await run(endpoint, work, arrivals, path=path, **end, **options))
        if runs[-1].interrupted:
            break
    return runs


async def search(
    endpoint: Endpoint,
    workload: Workload,
    objective: Objective | None = None,
    *,
    arrivals: Callable[[float], Arrivals] | None = None,
    start: float = 1,
    limit: float = 1024,
    precision: float = 0.1,
    requests_per_user: int = 4,
    folder: str | Path | None = None,
    **options,
) -> list[Run]:
    """Find the highest load that meets an objective: double until it fails, then bisect.

    ``measure.capacity(runs, objective)`` reads the answer from the runs, which are also the sweep
    that the plots take.

    Args:
        endpoint: the server.
        workload: what is asked.
        objective: what must be met.
        arrivals: makes the arrivals of a load, by default ``n`` users in a closed loop; e.g.
            ``lambda rate: Poisson(rate_per_s=rate)`` for the highest request rate, or
            ``lambda n: ClosedLoop(users=n, think_time_s=20)`` for customers.
        start: first load; a hundredth of it is the least that is tried.
        limit: highest load to try.
        precision: stop when the bracket is narrower than this part of it (or than one user).
        requests_per_user: length of each run, unless ``requests`` or ``duration_s`` is given; a
            rate is kept up for ``RATE_S`` seconds, so that a queue that grows is seen growing.
        folder: where the runs' files go, by default as for ``run``.
        options: as for ``run``.
    """
    objective = objective or Objective()
    make = arrivals or (lambda users: ClosedLoop(users=users))
    whole = isinstance(make(int(start) or 1), ClosedLoop)
    runs: dict[float, Run] = {}

    async def passes(load: float) -> bool:
        end = _end(load, requests_per_user if whole else RATE_S, options)
        path = Path(folder) / f"{load:08.2f}.jsonl" if folder else None
        work, these = unseen(workload, load, of="search"), make(int(load) if whole else load)
        runs[load] = await run(endpoint, work, these, path=path, **{**options, **end})
        return not runs[load].interrupted and meets(runs[load], objective)

    low, high = 0.0, start
    while await passes(high):
        low, high = high, min(2 * high, limit)
        if low >= limit:
            break
    while low < high and not any(one.interrupted for one in runs.values()):
        middle = (low + high) / 2
        middle = float(int(middle)) if whole else middle
        if middle <= low or high - low <= precision * high or middle < start / 100:
            break
        low, high = (middle, high) if await passes(middle) else (low, middle)
    return [runs[load] for load in sorted(runs)]


def _end(load: float, requests_each: float, options: dict) -> dict:
    if options.keys() & {"requests", "duration_s"}:
        return {}
    return {"requests": max(8, int(requests_each * load))}


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
    folder = os.environ.get("RUNS_DIR") or Path(__file__).parents[2] / "runs"
    return Path(folder) / f"{stamp}_{words}.jsonl"
