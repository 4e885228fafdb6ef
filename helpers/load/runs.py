"""Load a server with simulated customers and record every request.

The requests are made by ``helpers.load.generator`` in a process of its own, so that neither a busy
notebook nor the drawing of its progress can disturb a clock read; this module starts it, follows
it and keeps its records in a file as they come.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from helpers.endpoint import Endpoint
from helpers.errors import CourseError, Stopped, above_zero
from helpers.load.arrivals import Arrivals, ClosedLoop, Replay
from helpers.load.files import RunFile, header
from helpers.load.samplers import OtherPrograms, ServerSampler
from helpers.load.workers import Local, Where
from helpers.load.workload import Workload, to_spec
from helpers.records import Run


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
    where: Where | None = None,
    server_every_s: float | None = 0.5,
    progress: bool = True,
    enough: Callable[[float, Path], bool] | None = None,
    allow_partial: bool = False,
    after: Sequence[Run] = (),
) -> Run:
    """Make the requests and return a record of each.

    Args:
        endpoint: the server.
        workload: what is asked.
        arrivals: when it is asked.
        requests: stop after so many.
        duration_s: send nothing new after this time; what is in flight is waited for.
        path: JSONL file of the run; by default a new one in ``RUNS_DIR`` or ``runs``.
        label: name of the run in tables and figures, by default the arrivals in words.
        timeout_s: for one request, from sending it to the end of its answer.
        where: where the requests are made: ``Local`` (the default), ``OverSSH``, ``OnExecutor``.
        server_every_s: time between readings of the server's ``/metrics``; ``None`` for none.
        progress: show a line of progress.
        enough: says of (seconds, path) that the run may end; what is in flight is cut off.
        allow_partial: when it is interrupted, return what was measured.
        after: runs of the same measurement that came before; a stop tells of them, too.

    Raises:
        Stopped: by Ctrl-C or the stop button; says how far it came and where all records are.
        CourseError: no end is given, the server does not answer or is gone, or a generator breaks.
    """
    where = where or Local()
    limits = {"requests": requests, "duration_s": duration_s, "timeout_s": timeout_s}
    above_zero(processes=where.processes, **limits)
    users = arrivals.users if isinstance(arrivals, ClosedLoop) else where.processes
    processes = min(where.processes, users)  # each has at least one user
    spec = _spec(endpoint, workload, arrivals, limits)
    spec["base_url"] = where.base_url or spec["base_url"]
    file = RunFile(path, header(endpoint, spec, label or str(arrivals), processes), shown=progress)
    file.enough = enough or file.enough
    if server_every_s:
        file.sampler = ServerSampler(endpoint, server_every_s, file.add)
    others = OtherPrograms()
    try:
        await where.play([{**spec, "shard": [n, processes]} for n in range(processes)], file)
        stopped = False
    except (asyncio.CancelledError, KeyboardInterrupt):
        stopped = True
    finally:
        file.add("others", {"cores": others.cores()})
        file.close()
    return _kept(file, after, stopped, allow_partial)


def _kept(file: RunFile, after: Sequence[Run], stopped: bool, allow_partial: bool) -> Run:
    """Return the run in a file that is closed, or tell why it is no result and where it is."""
    if file.problem:
        what = f"the run was ended: its records could not be written ({file.problem.strerror})"
        raise CourseError(what, f"free some disk space; what was written so far is in {file.path}")
    done = Run.read(file.path, allow_partial=allow_partial)
    if (stopped or done.interrupted) and not allow_partial:
        names = ", ".join(one.path.name for one in (*after, done) if one.path)
        what = f"{done.label}; the records are in {file.path.parent}: {names}"
        then = "; load.Run.read(path, allow_partial=True) takes what there is"
        if stopped:
            raise Stopped(what, "run it again" + then)
        raise CourseError(what, "is it still rented? `python -m helpers status`" + then)
    return done


def _spec(endpoint: Endpoint, workload: Workload, arrivals: Arrivals, limits: dict) -> dict:
    """Return what a load generator is told, as plain JSON values.

    Raises:
        CourseError: the run has no end.
    """
    if isinstance(arrivals, Replay):
        length = len(arrivals.times_s)
        limits["requests"] = min(limits["requests"] or length, length)
    if limits["requests"] is None and limits["duration_s"] is None:
        raise CourseError("the run has no end", "give requests=, duration_s= or both")
    return {
        "base_url": endpoint.base_url,
        "ca_file": endpoint.ca_file,
        "model": endpoint.model,
        "api_key": endpoint.api_key,
        "workload": to_spec(workload),
        "arrivals": to_spec(arrivals),
        **limits,
    }
