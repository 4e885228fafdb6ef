"""How many replicas a day's traffic needs, hour by hour, and what they cost in four ways.

Arithmetic on inputs: a measured capacity, a traffic curve, prices. What nobody here can know (how
often an interruptible machine is taken away, how long a cold start lasts) is an input as well.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers.errors import CourseError
from helpers.measure.capacity import Capacity

HOURS = 24


@dataclass(frozen=True, kw_only=True)
class Interruptible:
    """Machines by bid, which may be taken away at any time.

    Args:
        usd_per_hour: of one replica.
        interruptions_per_hour: how often one running replica is taken away, on average: look at
            your own machines, no marketplace publishes it.
        replace_s: seconds from losing a replica until another one is ready.
    """

    usd_per_hour: float
    interruptions_per_hour: float
    replace_s: float

    @property
    def available(self) -> float:
        """Part of the time that a replica is there: up / (up + being replaced)."""
        return 1 / (1 + self.interruptions_per_hour * self.replace_s / 3600)


@dataclass(frozen=True, kw_only=True)
class Serverless:
    """Workers that a service starts when requests come and ends when none do.

    Args:
        usd_per_hour: of one worker, from the start of its loading until it is ended.
        cold_start_s: seconds from the request that finds no worker until one is ready.
        idle_s: seconds without a request after which a worker is ended.
    """

    usd_per_hour: float
    cold_start_s: float
    idle_s: float

    def one_worker(self, requests_per_s: float) -> tuple[float, float, float]:
        """A single worker under few requests, as a renewal process (service times left out).

        With Poisson arrivals at rate r, a gap longer than T = ``idle_s`` comes after
        ``(exp(rT) - 1) / r`` seconds on average (the expected wait for a run without arrivals;
        Feller, An Introduction to Probability Theory, XIII). So one cycle is a pause of ``1 / r``,
        a cold start of S seconds, and that.

        Returns:
            Part of the time that is billed, cold starts an hour, and the part of the requests
            that wait for one (the first, and those that come while it lasts).

        >>> worker = Serverless(usd_per_hour=0.4, cold_start_s=0, idle_s=600)
        >>> [round(part, 3) for part in worker.one_worker(1 / 600)]  # 1 - 1/e of the time
        [0.632, 2.207, 0.368]
        """
        rate, start = requests_per_s, self.cold_start_s
        if rate == 0:
            return 0.0, 0.0, 0.0
        if rate * self.idle_s > 50:  # such a gap never comes
            return 1.0, 0.0, 0.0
        up = start + math.expm1(rate * self.idle_s) / rate
        cycle = 1 / rate + up
        return up / cycle, 3600 / cycle, (1 + rate * start) / (rate * cycle)


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The answer of :func:`fleet`.

    Args:
        per_replica: load that one replica carries.
        unit: of the load: ``requests/s`` or ``users``.
        hours: one row an hour: ``load``, ``replicas`` on demand, ``interruptible`` and
            ``serverless`` ones where these were asked for, and ``unserved``, the load above what
            the limit of replicas carries.
        costs: one row a way to rent: ``replica_hours`` and ``usd_per_day``, ``usd_per_month`` (30
            days), and what to expect in a day: ``interruptions``, and ``cold_requests`` that wait
            for a cold start (``NaN`` where the unit does not tell).
    """

    per_replica: float
    unit: str
    hours: pd.DataFrame
    costs: pd.DataFrame

    def __str__(self) -> str:
        counts, costs = self.hours.replicas, self.costs.usd_per_day
        best = costs.idxmin()
        text = (
            f"{counts.min()} to {counts.max()} replicas; cheapest: {best}, ${costs[best]:.2f} a day"
            f" (peak all day: ${costs.iloc[0]:.2f})"
        )
        short = self.hours.index[self.hours.unserved > 0]
        if len(short):
            text += f"; NOT ENOUGH in {len(short)} h, first at {short[0]}:00"
        return text


def fleet(
    traffic: Sequence[float] | pd.DataFrame,
    capacity: Capacity | float,
    *,
    usd_per_hour: float,
    interruptible: Interruptible | None = None,
    serverless: Serverless | None = None,
    headroom: float = 0.3,
    minimum: int = 1,
    limit: int | None = None,
    start_s: float = 0.0,
    unit: str = "requests/s",
) -> Fleet:
    """Replicas by the hour for a day's traffic, and their cost.

    Within an hour the load is taken as even. A replica that is added is billed from its start.
    Interruptible replicas are so many that those which are there on average carry the load.

    Args:
        traffic: the expected load of each hour from 0 to 23, in the unit of the capacity: 24
            numbers, or a table with ``hour`` and ``load``.
        capacity: what one replica carries: an answer of ``measure.capacity``, or the number.
        usd_per_hour: of a replica on demand.
        interruptible: price and manners of machines by bid.
        serverless: price and manners of a serverless service; it may scale to zero.
        headroom: planned above the curve, as a part of it, for what an average hides.
        minimum: replicas that stay in the quietest hour (on demand and interruptible).
        limit: most replicas that may run; above it load stays unserved.
        start_s: seconds from renting a replica on demand until it is ready.
        unit: of a capacity given as a number: ``requests/s`` or ``users``.

    Raises:
        CourseError: a replica carries nothing, or the traffic or another input makes no sense.

    >>> day = fleet([1] * 12 + [9] * 12, 4, usd_per_hour=0.5, headroom=0)
    >>> print(day)
    1 to 3 replicas; cheapest: by the hour, $24.00 a day (peak all day: $36.00)
    """
    if isinstance(capacity, Capacity):
        capacity, unit = capacity.load, capacity.unit
    load = _load(traffic)
    _check(capacity, usd_per_hour, headroom, minimum, limit, start_s, interruptible, serverless)
    minimum, most = math.ceil(minimum), math.floor(limit) if limit else np.inf
    needed = _whole(load * (1 + headroom) / capacity)
    replicas = np.minimum(np.maximum(needed, minimum), most)
    hours = pd.DataFrame({"load": load, "replicas": replicas.astype(int)})
    hours.index.name = "hour"
    hours["unserved"] = np.maximum(0.0, load - replicas * capacity)
    added = _added(replicas) * start_s / 3600
    rows = [
        ("peak all day", replicas.max() * HOURS, usd_per_hour, 0.0, 0.0),
        ("by the hour", (replicas + added).sum(), usd_per_hour, 0.0, 0.0),
    ]
    if interruptible:
        there = interruptible.available
        count = np.maximum(_whole(load * (1 + headroom) / capacity / there), minimum)
        count = np.minimum(count, most)
        hours["interruptible"] = count.astype(int)
        lost = count.sum() * there * interruptible.interruptions_per_hour
        billed = (count + _added(count) * interruptible.replace_s / 3600).sum()
        rows.append(("interruptible", billed, interruptible.usd_per_hour, lost, 0.0))
    if serverless:
        workers = np.minimum(needed, most)
        hours["serverless"] = workers.astype(int)
        billed, cold = _serverless(workers, load, serverless, unit)
        rows.append(("serverless", billed, serverless.usd_per_hour, 0.0, cold))
    names = ["way", "replica_hours", "usd_per_hour", "interruptions", "cold_requests"]
    costs = pd.DataFrame(rows, columns=names).set_index("way")
    costs.insert(2, "usd_per_day", costs.replica_hours * costs.usd_per_hour)
    costs.insert(3, "usd_per_month", 30 * costs.usd_per_day)
    return Fleet(per_replica=float(capacity), unit=unit, hours=hours, costs=costs)


def _load(traffic: Sequence[float] | pd.DataFrame) -> np.ndarray:
    """The 24 loads, checked."""
    if isinstance(traffic, pd.DataFrame):
        if not {"hour", "load"} <= set(traffic) or sorted(traffic.hour) != list(range(HOURS)):
            raise CourseError(
                "the traffic table is no day", "columns hour (0 to 23, each once) and load"
            )
        traffic = traffic.sort_values("hour").load
    load = np.asarray(traffic, dtype=float)
    if load.shape != (HOURS,) or not np.isfinite(load).all() or (load < 0).any():
        raise CourseError(
            "the traffic is no day's curve", "24 numbers, none negative, one for each hour"
        )
    return load


def _check(capacity, usd_per_hour, headroom, minimum, limit, start_s, *ways) -> None:
    if not (math.isfinite(capacity) and capacity > 0):
        raise CourseError(
            f"a replica that carries {capacity:g} carries no fleet",
            "measure a capacity first (notebook 04); 0 means that no load met the objective",
        )
    given = [usd_per_hour, headroom, minimum, start_s]
    given += [value for way in ways if way for value in vars(way).values()]
    if not all(math.isfinite(value) and value >= 0 for value in given):
        raise CourseError("a price, a time or the headroom is negative or no number")
    if limit is not None and not limit >= max(minimum, 1):
        raise CourseError(f"a limit of {limit} replicas is below the minimum", "raise the limit")


def _whole(replicas: np.ndarray) -> np.ndarray:
    """Rounded up, but not for the sake of a rounding error."""
    return np.ceil(replicas - 1e-9)


def _added(replicas: np.ndarray) -> np.ndarray:
    """Replicas started at the beginning of each hour; the day before was the same."""
    return np.maximum(0, replicas - np.roll(replicas, 1))


def _serverless(workers, load, service: Serverless, unit: str) -> tuple[float, float]:
    """Billed worker-hours of the day, and how many of its requests wait for a cold start."""
    billed = workers + _added(workers) * service.cold_start_s / 3600
    if unit != "requests/s":  # how often they come is not known: never idle while there is load
        return float(billed.sum()), float("nan")
    cold, gone = np.zeros(HOURS), (load == 0).astype(float)  # gone: no worker as the hour ends
    for hour in np.flatnonzero(workers == 1):
        billed[hour], _, cold[hour] = service.one_worker(load[hour])
        gone[hour] = 1 - billed[hour]
    # Who comes first after a pause waits, and so do those who come while the worker starts.
    woken = np.maximum(0, np.roll(gone, 1) - gone) * (1 + load * service.cold_start_s)
    waiting = np.minimum(3600 * cold * load + woken, 3600 * load)
    return float(billed.sum()), float(waiting.sum())
