"""Runs at several levels of load: a sweep over given ones, a search for the highest that holds."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.endpoint import Endpoint
from helpers.load.arrivals import Arrivals, ClosedLoop
from helpers.load.runs import run
from helpers.load.workload import Workload, unseen
from helpers.records import Run

if TYPE_CHECKING:
    from helpers.measure import Objective

RATE_S = 20.0  # length of a search's runs at a rate


async def sweep(
    endpoint: Endpoint,
    workload: Workload,
    *,
    users: tuple[int, ...] = (1, 2, 4, 8, 16),
    requests_per_user: int = 4,
    folder: str | Path | None = None,
    **options: Any,
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
    runs: list[Run] = []
    for count in users:
        end = _end(count, requests_per_user, options)
        path = Path(folder) / f"{count:04d}_users.jsonl" if folder else None
        work, arrivals = unseen(workload, count), ClosedLoop(users=count)
        runs.append(await run(endpoint, work, arrivals, path=path, after=runs, **end, **options))
        if runs[-1].interrupted:
            break
    return runs


async def search(
    endpoint: Endpoint,
    workload: Workload,
    objective: "Objective",
    *,
    arrivals: Callable[[float], Arrivals] | None = None,
    start: float = 1,
    limit: float = 1024,
    precision: float = 0.1,
    requests_per_user: int = 4,
    folder: str | Path | None = None,
    **options: Any,
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
    from helpers.measure.capacity import meets  # only a search judges what it measured

    make = arrivals or (lambda users: ClosedLoop(users=int(users)))
    whole = isinstance(make(int(start) or 1), ClosedLoop)
    runs: dict[float, Run] = {}

    async def passes(load: float) -> bool:
        end = _end(load, requests_per_user if whole else RATE_S, options)
        path = Path(folder) / f"{load:08.2f}.jsonl" if folder else None
        # Half a user off, because a sweep before may have asked the questions of a whole one.
        work, these = unseen(workload, load + 0.5), make(int(load) if whole else load)
        told = {**options, **end, "after": [*runs.values()]}
        runs[load] = await run(endpoint, work, these, path=path, **told)
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
