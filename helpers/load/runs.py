"""Load a server with simulated customers and record every request.

The requests are made by ``helpers.load.generator`` in a process of its own, so that neither a busy
notebook nor the drawing of its progress can disturb a clock read; this module starts it, follows
it and keeps its records in a file as they come.
"""

import asyncio
import contextlib
import time
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.load.arrivals import Arrivals, ClosedLoop, Replay, to_spec
from helpers.load.files import RunFile, header, new_path
from helpers.load.progress import RunProgress
from helpers.load.samplers import GpuSampler, ServerSampler
from helpers.load.workers import Shard, on_executor, ready
from helpers.load.workload import Workload
from helpers.records import Run

if TYPE_CHECKING:
    import paramiko


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
    limits = {"requests": requests, "duration_s": duration_s, "timeout_s": timeout_s}
    spec = _spec(endpoint, workload, arrivals, limits)
    if processes < 1:
        raise CourseError(f"processes is {processes}", "processes must be above 0")
    if there and (ssh is None or processes > 1 or executor):
        raise CourseError("there= needs ssh=, and neither processes= nor executor=")
    if isinstance(arrivals, ClosedLoop):
        processes = min(processes, arrivals.users)
    spec["base_url"] = there or endpoint.base_url
    label = label or str(arrivals)
    head = header(endpoint, spec, label, processes)
    file = RunFile(Path(path) if path else new_path(label), head)
    bar = RunProgress(label, spec["requests"], shown=progress)
    samplers: list[ServerSampler | GpuSampler] = []
    if server_every_s:
        samplers.append(ServerSampler(endpoint, server_every_s, file))
    if ssh:
        samplers.append(GpuSampler(ssh, file))
    specs = [{**spec, "shard": [number, processes]} for number in range(processes)]
    parts, cancelled = [], False
    try:
        if executor:
            following = asyncio.ensure_future(
                on_executor(executor, specs, file, bar, head["endpoint"]["base_url"])
            )
        else:
            parts = [
                Shard.there(one, file, bar, ssh) if there else Shard.here(one, file, bar)
                for one in specs
            ]
            await ready(parts, head["endpoint"]["base_url"])
        for sampler in samplers:
            await asyncio.to_thread(sampler.start)
        if parts:
            file.add("begin", {"at": round(time.time() + 0.02, 3)})  # the generators' own pause
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
    return Run.read(file.path)


def _spec(endpoint: Endpoint, workload: Workload, arrivals: Arrivals, limits: dict) -> dict:
    """Return what a load generator is told, as plain JSON values.

    Raises:
        CourseError: the run has no end, or a limit makes no sense.
    """
    if isinstance(arrivals, Replay):
        length = len(arrivals.times_s)
        limits = {**limits, "requests": min(limits["requests"] or length, length)}
    if limits["requests"] is None and limits["duration_s"] is None:
        raise CourseError("the run has no end", "give requests=, duration_s= or both")
    for name, value in limits.items():
        if value is not None and not value > 0:  # NaN is refused, too
            raise CourseError(f"{name} is {value}", f"{name} must be above 0")
    return {
        "base_url": endpoint.base_url,
        "route": "/chat/completions",
        "model": endpoint.model,
        "api_key": endpoint.api_key,
        "workload": to_spec(workload),
        "arrivals": to_spec(arrivals),
        **limits,
    }
