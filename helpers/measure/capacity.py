"""How many customers, at which quality, for how much."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

from helpers.errors import CourseError
from helpers.measure.steady import Interval, answers_per_s, interval, samples
from helpers.measure.summary import summary
from helpers.records import Record, Run, refuse_partial

QUEUE = 0.25  # so many waiting for each one that runs: the server takes no more at once


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A service-level objective: what a customer must get.

    Args:
        ttft_ms: longest time to first token; ``None`` for no demand.
        tpot_ms: longest time per output token; ``None`` for no demand.
        e2e_ms: longest end-to-end latency; ``None`` for no demand.
        percentile: percentage of requests for which each of these must hold.
        error_rate: largest share of requests (0 to 1) that may fail.
    """

    ttft_ms: float | None = 500.0
    tpot_ms: float | None = 50.0
    e2e_ms: float | None = None
    percentile: float = 95.0
    error_rate: float = 0.01

    @property
    def limits_ms(self) -> dict[str, float]:
        """The longest time of each latency for which there is a demand."""
        limits = {"ttft": self.ttft_ms, "tpot": self.tpot_ms, "e2e": self.e2e_ms}
        return {name: ms for name, ms in limits.items() if ms is not None}

    def __str__(self) -> str:
        rank, limits = f"p{self.percentile:g}", self.limits_ms.items()
        return ", ".join(f"{name.upper()} {rank} ≤ {ms:g} ms" for name, ms in limits)

    def holds(self, record: Record) -> bool:
        """Whether one request met every demand."""
        if not record.ok or record.ttft_s is None:
            return False
        times_s = [(getattr(record, f"{name}_s"), ms) for name, ms in self.limits_ms.items()]
        return all(time_s is None or 1e3 * time_s <= ms for time_s, ms in times_s)


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The answer: how much load, and what it gets.

    Args:
        objective: what had to be met.
        unit: of the load: ``users`` who ask again at once (closed loop), ``customers`` who think
            in between, or ``requests/s`` (open loop).
        load: the highest that meets it, read between the loads that were measured; 0 when even
            the lowest missed it.
        low: the least that it may be, by the 95 % intervals of what was measured.
        high: the most that it may be; infinite when no measured load surely missed it.
        undecided: the loads that were measured and may have met it or not.
        output_tokens_per_s: at ``load``.
        e2e_s: median end-to-end latency there, in seconds.
        think_time_s: pause of those who were simulated between two requests.
    """

    objective: Objective
    unit: str
    load: float
    low: float = 0.0
    high: float = math.inf
    undecided: tuple[float, ...] = ()
    output_tokens_per_s: float = 0.0
    e2e_s: float = math.nan
    think_time_s: float = 0.0

    def __str__(self) -> str:
        pause = f" who think for {self.think_time_s:g} s between requests"
        who = self.unit + {"users": " who ask again at once", "customers": pause}.get(self.unit, "")
        upper = f"to {self.high:g}" if self.high < math.inf else "or more"
        said = f"{self.load:g} {who} (95 % interval {self.low:g} {upper}) with {self.objective}: "
        said += f"{self.output_tokens_per_s:.0f} output tokens/s"
        loads = ", ".join(f"{load:g}" for load in self.undecided)
        return said + (f"; undecided at {loads}" if loads else "")

    def customers(self, think_time_s: float) -> int:
        """Return how many customers who think for so long make that load.

        A customer who thinks for ``think_time_s`` seconds between requests that take ``e2e_s`` is
        a concurrent user for ``e2e_s`` of every ``think_time_s + e2e_s`` (interactive response
        time law; Denning and Buzen 1978).
        """
        cycle_s = 1.0 if self.unit == "requests/s" else self.e2e_s + self.think_time_s
        return int(self.load / cycle_s * (think_time_s + self.e2e_s)) if self.load else 0


def level(run: Run) -> tuple[float, str]:
    """Return the load of a run and its unit.

    Raises:
        CourseError: its arrivals have no single level (a trace).
    """
    arrivals = run.header["arrivals"]
    if "users" in arrivals:
        return arrivals["users"], "customers" if arrivals.get("think_time_s") else "users"
    if not arrivals.keys() & {"rate_per_s", "every_s"}:
        raise CourseError(f"{run.label} has no single level of load", "use ClosedLoop or Poisson")
    return arrivals.get("rate_per_s") or 1 / arrivals["every_s"], "requests/s"


def goodput(run: Run, objective: Objective) -> float:
    """Return requests per second that met the objective, in the window of ``summary``.

    The measure of DistServe (Zhong et al. 2024) and of ``vllm bench serve --goodput``.
    """
    refuse_partial(run)
    return answers_per_s(run, filter(objective.holds, run.records))


def margin(run: Run, objective: Objective) -> Interval:
    """Return how the run's latencies stand to the promise, as a ratio with its interval.

    Of each demand the percentile over what was promised, and of these the largest: below 1 the
    promise was kept. Infinite where more requests failed (or brought no token) than it allows,
    and where the server did not keep up with an open loop.
    """
    refuse_partial(run)
    silent = sum(not record.token_us for record in run.ok)
    lost = (len(run.failed) + silent) / max(len(run.ok) + len(run.failed), 1)
    if not run.ok or lost > objective.error_rate or falls_behind(run):
        return Interval(value=math.inf, low=math.inf, high=math.inf)
    ends = [(0.0, 0.0, 0.0)]
    for name, ms in objective.limits_ms.items():
        if samples(run, name):
            one = interval(run, f"{name}_p{objective.percentile:g}_ms")
            ends.append((one.value / ms, one.low / ms, one.high / ms))
    value, low, high = map(max, zip(*ends, strict=True))
    return Interval(value=value, low=low, high=high)


def verdict(run: Run, objective: Objective) -> str:
    """Return whether the promise was ``kept`` or ``missed`` for sure, or is ``undecided``."""
    found = margin(run, objective)
    return "kept" if found.high <= 1 else "missed" if found.low > 1 else "undecided"


def capacity(runs: Sequence[Run], objective: Objective | None = None) -> Capacity:
    """Return the highest load that meets the objective, from the runs of a sweep or search.

    Loads above the lowest miss do not count, even if one of them met it again; of repeated runs
    at a load the worst counts.

    Raises:
        CourseError: there are no runs, they mix users and rates, or one was stopped.
    """
    objective = objective or Objective()
    whole = sorted(runs, key=lambda run: level(run)[0])
    kinds = {(level(run)[1], run.header["arrivals"].get("think_time_s", 0.0)) for run in whole}
    if len(kinds) != 1:
        raise CourseError("capacity needs runs, all of users or all of rates", "see load.search")
    unit, think_time_s = kinds.pop()
    pairs = [(level(run)[0], margin(run, objective)) for run in whole]
    worst = dict(sorted(pairs, key=lambda pair: pair[1].value))  # the last one of a load stays
    load, high, low = (
        crossing({at: getattr(one, end) for at, one in worst.items()})
        for end in ("value", "low", "high")
    )
    # Between two loads nobody knows more than that it lies there.
    low = min(low, max((x for x in worst if x <= load), default=0.0))
    surely_missed = any(one.low > 1 for one in worst.values())
    high = max(high, min((x for x in worst if x > load), default=0)) if surely_missed else math.inf
    if unit != "requests/s":
        load, low = math.floor(load + 1e-9), math.floor(low + 1e-9)
        high = high if high == math.inf else math.ceil(high - 1e-9)
    loads, gets = [level(run)[0] for run in whole], [summary(run) for run in whole]
    rate = np.interp(load, loads, [one.output_tokens_per_s for one in gets])
    e2e_s = np.interp(load, loads, [one.e2e_p50_s for one in gets])
    return Capacity(
        objective=objective, unit=unit, load=load, low=low, high=high,
        undecided=tuple(x for x, one in sorted(worst.items()) if one.low <= 1 < one.high),
        output_tokens_per_s=float(rate) if load else 0.0, e2e_s=float(e2e_s) if load else math.nan,
        think_time_s=think_time_s,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Saturation:
    """Where more users stop bringing more tokens.

    Args:
        users: at so many the server makes 90 % of the most that it can.
        output_tokens_per_s: the most that it can make.
        alpha_ms: time of a pass over the weights that does not depend on the users.
        beta_ms: what each user adds to it.
        room: how many requests it takes at once; infinite if no more were seen to wait.
    """

    users: float
    output_tokens_per_s: float
    alpha_ms: float
    beta_ms: float
    room: float


def saturation(runs: Sequence[Run]) -> Saturation:
    """Fit ``N / (alpha + beta x N)`` to the throughput of a sweep, up to the server's room.

    A pass that makes one token for each of N users takes ``alpha + beta x N``: its weights are
    read once for all, and each user adds arithmetic, cache to read and prompts. The room is what
    the server's ``/metrics`` showed; of one that shows nothing the curve has no other end.
    """
    users = np.array([level(run)[0] for run in runs], dtype=float)
    rates = np.array([summary(run).output_tokens_per_s for run in runs])
    most = min(map(room, runs))
    at_once = np.minimum(users, most)
    columns = np.stack([rates / at_once, rates]).T  # of a relative error
    (alpha_s, beta_s), *_ = np.linalg.lstsq(columns, np.ones(len(users)), rcond=None)
    alpha_s, beta_s = max(alpha_s, 1e-9), max(beta_s, 1e-9)
    top = 1 / (alpha_s / most + beta_s)
    return Saturation(
        users=0.9 * top * alpha_s / (1 - 0.9 * top * beta_s), output_tokens_per_s=top,
        alpha_ms=1e3 * alpha_s, beta_ms=1e3 * beta_s, room=most,
    )  # fmt: skip


def room(run: Run) -> float:
    """Return how many requests the server took at once while others waited for them to end."""
    refuse_partial(run)
    late = run.samples[len(run.samples) // 2 :]
    waiting, running = ([s.get(kind, 0) for s in late] for kind in ("waiting", "running"))
    return round(median(running)) if sum(waiting) > QUEUE * sum(running) > 0 else math.inf


def crossing(margins: dict[float, float], beyond: bool = False) -> float:
    """Return the load at which the margin passes 1, between the loads where it is known.

    Both are taken as logarithms, in which latencies are nearly straight. The lower load where the
    upper margin is infinite, 0 where the first is above 1. Where none is, the last load; if asked
    for what lies ``beyond``, where the line through the last two leads, which may be nowhere.
    """
    points = sorted(margins.items())
    if points[0][1] > 1:
        return 0.0
    for (low, below), (high, above) in pairwise(points):
        if above > 1 or (beyond and high == points[-1][0]):
            if not (math.isfinite(above) and 0 < below < above):
                return math.inf if beyond else low
            share = math.log(below) / math.log(below / above)
            return low * (high / low) ** min(share, 99.0)  # a flat line leads far away
    return math.inf if beyond else points[-1][0]


def usd_per_million_tokens(usd_per_hour: Any, tokens_per_s: Any) -> Any:
    """Return what a million tokens cost on a machine that is busy all the time.

    Args:
        usd_per_hour: its price; a number, or a column of a table.
        tokens_per_s: its throughput, likewise; at 0 the answer is infinite.

    >>> round(float(usd_per_million_tokens(0.36, 1000)), 2)
    0.1
    """
    with np.errstate(divide="ignore"):
        return np.divide(usd_per_hour, tokens_per_s) / 3600 * 1e6


def falls_behind(run: Run) -> bool:
    """Whether an open loop asked faster than the server answered, so that its queue only grew.

    Then latencies say how long the run was, not how good the server is. Counted from the time in
    which a first answer could have come: requests that came and those that were answered may
    differ by 15 %, and by twice the square root of their number, which is chance.
    """
    if not run.header["arrivals"].keys() & {"rate_per_s", "every_s"} or not run.ok:
        return False
    begin = min(record.origin_s for record in run.records)
    end = max(record.origin_s for record in run.records)
    begin = min(begin + float(np.median([record.e2e_s for record in run.ok])), (begin + end) / 2)
    came = sum(begin <= record.origin_s <= end for record in run.records)
    went = sum(begin <= record.end_s <= end for record in run.records)
    return came - went > max(0.15 * came, 2 * came**0.5)
