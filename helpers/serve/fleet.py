"""How many replicas a day's traffic needs, hour by hour, and what they cost in four ways.

Arithmetic on inputs: what a replica carries, a day's traffic, prices. What nobody here can know
(how often an interruptible machine is taken away, how long a cold start lasts) is an input as well.
pandas is imported by the functions that need it: every start of the rehearsal loads this room.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helpers.errors import CourseError

if TYPE_CHECKING:
    import pandas as pd


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

    def one_worker(self, requests_per_s: "pd.Series") -> "tuple[pd.Series, pd.Series]":
        """A single worker under few requests, as a renewal process (service times left out).

        With Poisson arrivals at rate r, a gap longer than T = ``idle_s`` comes after
        ``(exp(rT) - 1) / r`` seconds on average (the expected wait for a run without arrivals;
        Feller, An Introduction to Probability Theory, XIII). So one cycle is a pause of ``1 / r``,
        a cold start of S seconds, and then that time: ``S + exp(rT) / r`` in all. Below, every
        part of it is multiplied by ``r exp(-rT)``, so that nothing overflows or divides by zero.

        Args:
            requests_per_s: the rate r of each hour.

        Returns:
            Share of the time that is billed, and the share of the requests that wait for a cold
            start (the first, and those that come while it lasts).

        >>> import pandas
        >>> worker = Serverless(usd_per_hour=0.4, cold_start_s=0, idle_s=600)
        >>> [float(part.round(3)[0]) for part in worker.one_worker(pandas.Series([1 / 600]))]
        [0.632, 0.368]
        """
        # The chance that the next one comes too late.
        gap = math.e ** (-requests_per_s * self.idle_s)
        during_start = requests_per_s * self.cold_start_s
        cycle = 1 + during_start * gap
        return 1 - gap / cycle, (1 + during_start) * gap / cycle


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The answer of :func:`fleet`.

    Args:
        per_replica: requests per second that one replica carries.
        hours: one row for each hour: ``load``, ``replicas`` on demand, and ``interruptible`` and
            ``serverless`` ones where these were asked for.
        costs: one row for each way to rent: ``replica_hours``, ``usd_per_hour`` of one,
            ``usd_per_day``, ``usd_per_month`` (30 days), and what to expect in a day:
            ``interruptions``, and ``cold_requests`` that wait for a cold start.
    """

    per_replica: float
    hours: "pd.DataFrame"
    costs: "pd.DataFrame"

    def __str__(self) -> str:
        counts, costs = self.hours.replicas, self.costs.usd_per_day
        said = f"{counts.min()} to {counts.max()} replicas; cheapest: {costs.idxmin()}, "
        return said + f"${costs.min():.2f} a day (peak all day: ${costs.iloc[0]:.2f})"


def fleet(
    traffic: Sequence[float],
    per_replica: float,
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
        traffic: the expected requests per second of each hour from 0 to 23.
        per_replica: requests per second that one replica carries.
        usd_per_hour: of a replica on demand.
        interruptible: price of a machine rented by bid, and how often it is taken away.
        serverless: price and cold start of a serverless service; it may scale to zero.
        headroom: share of the load that is planned on top of it, for what an average hides.
        minimum: replicas that stay in the quietest hour (on demand and interruptible).
        start_s: seconds from renting a replica on demand until it is ready.

    Raises:
        CourseError: a replica carries nothing, or the traffic is not a day's.

    >>> print(fleet([1] * 12 + [9] * 12, 4, usd_per_hour=0.5, headroom=0))
    1 to 3 replicas; cheapest: by the hour, $24.00 a day (peak all day: $36.00)
    """
    import pandas as pd

    load = pd.Series(traffic, dtype=float)
    _check(load, per_replica)
    needed = load * (1 + headroom) / per_replica
    hours = pd.DataFrame({"load": load, "replicas": _whole(needed, minimum)}).rename_axis("hour")
    columns = ["replica_hours", "usd_per_hour", "interruptions", "cold_requests"]
    ways: dict[str, tuple[float, ...]] = {
        "peak all day": (hours.replicas.max() * len(hours), usd_per_hour, 0, 0),
        "by the hour": (_billed(hours.replicas, start_s).sum(), usd_per_hour, 0, 0),
    }
    if interruptible:
        hours["interruptible"] = count = _whole(needed / interruptible.available, minimum)
        billed = _billed(count, interruptible.replace_s).sum()
        lost = count.sum() * interruptible.available * interruptible.interruptions_per_hour
        ways["interruptible"] = (billed, interruptible.usd_per_hour, lost, 0)
    if serverless:
        hours["serverless"] = workers = _whole(needed, 0)
        billed, cold = _serverless(workers, load, serverless)
        ways["serverless"] = (billed, serverless.usd_per_hour, 0, cold)
    costs = pd.DataFrame.from_dict(ways, orient="index", columns=columns).rename_axis("way")
    costs["usd_per_day"] = costs.replica_hours * costs.usd_per_hour
    costs["usd_per_month"] = 30 * costs.usd_per_day
    return Fleet(per_replica=per_replica, hours=hours, costs=costs)


def _check(load: "pd.Series", per_replica: float) -> None:
    if not 0 < per_replica < float("inf"):
        hint = "measure a capacity first (notebook 04); 0 means that no load met the objective"
        raise CourseError(f"replicas that carry {per_replica:g} make no fleet", hint)
    if len(load) != 24 or not (load >= 0).all():
        hint = "24 numbers, none negative, one for each hour"
        raise CourseError("the traffic is not a day's curve", hint)


def _whole(needed: "pd.Series", minimum: int) -> "pd.Series":
    """Whole replicas, at least the minimum, but none more for the sake of a rounding error."""
    return (needed - 1e-9).map(math.ceil).clip(lower=minimum)


def _billed(replicas: "pd.Series", start_s: float) -> "pd.Series":
    """Replica-hours of each hour, with the starts of those that are added as it begins."""
    return replicas + _more(replicas) * start_s / 3600


def _more(counted: "pd.Series") -> "pd.Series":
    """By how much each hour has more than the one before; the day before was the same."""
    before = counted.shift(fill_value=counted.iloc[-1])
    return (counted - before).clip(lower=0)


def _serverless(
    workers: "pd.Series", load: "pd.Series", service: Serverless
) -> tuple[float, float]:
    """Billed worker-hours of the day, and how many of its requests wait for a cold start."""
    billed = _billed(workers, service.cold_start_s)
    few = workers <= 1
    share, cold = service.one_worker(load)
    # The first request after a pause waits, and so do those that come while the worker starts.
    woken = _more(share.where(few, 1)) * (1 + load * service.cold_start_s)
    waiting = (3600 * load * cold.where(few, 0) + woken).clip(upper=3600 * load)
    return billed.where(~few, share).sum(), waiting.sum()
