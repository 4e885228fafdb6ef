"""How many replicas a day's traffic needs, hour by hour, and what they cost in four ways.

Arithmetic on inputs: a measured capacity, a traffic curve, prices. What nobody here can know (how
often an interruptible machine is taken away, how long a cold start lasts) is an input as well.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from helpers.errors import CourseError

if TYPE_CHECKING:  # measuring is none of serving's business; its answers are welcome
    from helpers.measure.capacity import Capacity

HOURS = 24


@dataclass(frozen=True, kw_only=True)
class Interruptible:
    """Machines that are rented by bid, and may be taken away at any time.

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
        """Share of the time that a replica is there: up / (up + being replaced)."""
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
        a cold start of S seconds, and then that time.

        Returns:
            Share of the time that is billed, cold starts an hour, and the share of the requests
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
        hours: one row for each hour: ``load``, ``replicas`` on demand, and ``interruptible`` and
            ``serverless`` ones where these were asked for.
        costs: one row for each way to rent: ``replica_hours``, ``usd_per_hour`` of one,
            ``usd_per_day``, ``usd_per_month`` (30 days), and what to expect in a day:
            ``interruptions``, and ``cold_requests`` that wait for a cold start (``NaN`` where the
            unit does not tell).
    """

    per_replica: float
    unit: str
    hours: pd.DataFrame
    costs: pd.DataFrame

    def __str__(self) -> str:
        counts, costs = self.hours.replicas, self.costs.usd_per_day
        return (
            f"{counts.min()} to {counts.max()} replicas; cheapest: {costs.idxmin()}, "
            f"${costs.min():.2f} a day (peak all day: ${costs.iloc[0]:.2f})"
        )


def fleet(
    traffic: Sequence[float],
    capacity: "Capacity | float",
    *,
    usd_per_hour: float,
    interruptible: Interruptible | None = None,
    serverless: Serverless | None = None,
    headroom: float = 0.3,
    minimum: int = 1,
    start_s: float = 0.0,
) -> Fleet:
    """Replicas by the hour for a day's traffic, and their cost.

    Within an hour the load is taken as even. A replica that is added is billed from its start.
    So many interruptible replicas are rented that those which are there on average carry the load.

    Args:
        traffic: the expected load of each hour from 0 to 23, in the unit of the capacity.
        capacity: what one replica carries: an answer of ``measure.capacity``, or requests/s.
        usd_per_hour: of a replica on demand.
        interruptible: price of a machine rented by bid, and how often it is taken away.
        serverless: price and cold start of a serverless service; it may scale to zero.
        headroom: share of the load that is planned on top of it, for what an average hides.
        minimum: replicas that stay in the quietest hour (on demand and interruptible).
        start_s: seconds from renting a replica on demand until it is ready.

    Raises:
        CourseError: a replica carries nothing, or the traffic or another input makes no sense.

    >>> day = fleet([1] * 12 + [9] * 12, 4, usd_per_hour=0.5, headroom=0)
    >>> print(day)
    1 to 3 replicas; cheapest: by the hour, $24.00 a day (peak all day: $36.00)
    """
    per_replica, unit = _per_replica(capacity)
    load = np.asarray(traffic, dtype=float)
    _check(load, usd_per_hour, headroom, minimum, start_s, interruptible, serverless)
    needed = load * (1 + headroom) / per_replica
    replicas = _whole(needed, minimum)
    hours = pd.DataFrame({"load": load, "replicas": replicas}).rename_axis("hour")
    costs = {
        "peak all day": _cost(np.full(HOURS, replicas.max()), usd_per_hour),
        "by the hour": _cost(_billed(replicas, start_s), usd_per_hour),
    }
    if interruptible:
        hours["interruptible"] = count = _whole(needed / interruptible.available, minimum)
        billed = _billed(count, interruptible.replace_s)
        lost = count.sum() * interruptible.available * interruptible.interruptions_per_hour
        costs["interruptible"] = _cost(billed, interruptible.usd_per_hour, interruptions=lost)
    if serverless:
        hours["serverless"] = workers = _whole(needed)
        billed, cold = _serverless(workers, load, serverless, unit)
        costs["serverless"] = _cost(billed, serverless.usd_per_hour, cold_requests=cold)
    table = pd.DataFrame.from_dict(costs, orient="index").rename_axis("way")
    return Fleet(per_replica=per_replica, unit=unit, hours=hours, costs=table)


def _per_replica(capacity: Any) -> tuple[float, str]:
    """What one replica carries, and in which unit: a measured capacity knows both itself."""
    load = getattr(capacity, "load", capacity)
    if not (math.isfinite(load) and load > 0):
        raise CourseError(
            f"replicas that carry {load:g} make no fleet",
            "measure a capacity first (notebook 04); 0 means that no load met the objective",
        )
    return float(load), getattr(capacity, "unit", "requests/s")


def _check(load: np.ndarray, *given: float | Interruptible | Serverless | None) -> None:
    """Every number that was given must be one, and none negative."""
    if load.shape != (HOURS,) or not np.isfinite(load).all() or (load < 0).any():
        raise CourseError(
            "the traffic is not a day's curve", "24 numbers, none negative, one for each hour"
        )
    for one in given:
        values = vars(one).values() if isinstance(one, Interruptible | Serverless) else [one or 0]
        if not all(math.isfinite(value) and value >= 0 for value in values):
            raise CourseError("a price, a time or the headroom is negative or not a number")


def _whole(needed: np.ndarray, minimum: int = 0) -> np.ndarray:
    """Whole replicas, at least the minimum, but none more for the sake of a rounding error."""
    return np.maximum(np.ceil(needed - 1e-9), math.ceil(minimum)).astype(int)


def _billed(replicas: np.ndarray, start_s: float) -> np.ndarray:
    """Replica-hours of each hour, with the starts of those that are added as it begins.

    The day before was the same, so that hour 0 is compared with hour 23.
    """
    added = np.maximum(0, replicas - np.roll(replicas, 1))
    return replicas + added * start_s / 3600


def _cost(
    billed: np.ndarray, usd_per_hour: float, interruptions: float = 0, cold_requests: float = 0
) -> dict[str, float]:
    """A row of the table of costs, from the replica-hours of each hour."""
    replica_hours = float(billed.sum())
    return {
        "replica_hours": replica_hours,
        "usd_per_hour": usd_per_hour,
        "usd_per_day": replica_hours * usd_per_hour,
        "usd_per_month": 30 * replica_hours * usd_per_hour,
        "interruptions": interruptions,
        "cold_requests": cold_requests,
    }


def _serverless(
    workers: np.ndarray, load: np.ndarray, service: Serverless, unit: str
) -> tuple[np.ndarray, float]:
    """Billed worker-hours of each hour, and how many requests of the day wait for a cold start."""
    billed = _billed(workers, service.cold_start_s)
    if unit != "requests/s":  # how often they come is not known: never idle while there is load
        return billed, math.nan
    cold, gone = np.zeros(HOURS), (load == 0).astype(float)  # gone: no worker as the hour ends
    for hour in np.flatnonzero(workers == 1):
        billed[hour], _, cold[hour] = service.one_worker(load[hour])
        gone[hour] = 1 - billed[hour]
    # The first request after a pause waits, and so do those that come while the worker starts.
    woken = np.maximum(0, np.roll(gone, 1) - gone) * (1 + load * service.cold_start_s)
    return billed, np.minimum(3600 * cold * load + woken, 3600 * load).sum()
