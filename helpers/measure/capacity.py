"""How many customers, at which quality, for how much."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from helpers.errors import CourseError
from helpers.measure.summary import measured, summary, window
from helpers.records import Record, Run, refuse_partial

NEVER_MS = 1e12


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
        return record.ok and not any(_ms(record, n) > ms for n, ms in self.limits_ms.items())


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The answer: how much load, and what it gets.

    Args:
        objective: what had to be met.
        unit: of the load: ``users`` (closed loop) or ``requests/s`` (open loop).
        load: the highest one that was measured and met it; 0 when none did.
        fails_at: the next one, which missed it: the true capacity lies between the two. ``None``
            when all met it, so that it lies at ``load`` or above.
        confidence: how often the verdicts stay the same when the requests are drawn again
            (bootstrap), 0 to 1.
        output_tokens_per_s: generated in the run at ``load``.
        e2e_s: median end-to-end latency in that run, in seconds.
    """

    objective: Objective
    unit: str
    load: float = 0.0
    fails_at: float | None
    confidence: float
    output_tokens_per_s: float = 0.0
    e2e_s: float = math.nan

    def __str__(self) -> str:
        upper = f"fewer than {self.fails_at:g}" if self.fails_at else "perhaps more"
        return (
            f"{self.load:g} {self.unit} ({upper}) with {self.objective}: "
            f"{self.output_tokens_per_s:.0f} output tokens/s, confidence {self.confidence:.0%}"
        )

    def customers(self, think_time_s: float) -> int:
        """Return how many customers make that many concurrent users.

        A customer who thinks for ``think_time_s`` seconds between requests that take ``e2e_s`` is
        a concurrent user for ``e2e_s`` of every ``think_time_s + e2e_s`` (interactive response
        time law; Denning and Buzen 1978).
        """
        per_s = self.load / self.e2e_s if self.unit == "users" else self.load
        return int(per_s * (think_time_s + self.e2e_s)) if self.load else 0


def level(run: Run) -> tuple[float, str]:
    """Return the load of a run and its unit.

    Raises:
        CourseError: its arrivals have no single level (a trace).
    """
    arrivals = run.header["arrivals"]
    if "users" in arrivals:
        return arrivals["users"], "users"
    if not arrivals.keys() & {"rate_per_s", "every_s"}:
        raise CourseError(f"{run.label} has no single level of load", "use ClosedLoop or Poisson")
    return arrivals.get("rate_per_s") or 1 / arrivals["every_s"], "requests/s"


def goodput(run: Run, objective: Objective) -> float:
    """Return requests per second that met the objective, in the window of ``summary``.

    The measure of DistServe (Zhong et al. 2024) and of ``vllm bench serve --goodput``.
    """
    refuse_partial(run)
    start, end = window(run)
    good = sum(objective.holds(r) for r in run.records if start <= r.end_s <= end)
    return good / max(end - start, 1e-9)


def meets(run: Run, objective: Objective) -> bool:
    """Whether a run met an objective: each percentile, the part of failed requests, and (an open
    loop) that the server kept up with it."""
    return bool(_verdicts(run, objective, resamples=0)[0])


def capacity(runs: Sequence[Run], objective: Objective | None = None) -> Capacity:
    """Return the highest load of a sweep or search that meets the objective.

    Loads above the lowest miss do not count, even if one of them met it again; of repeated runs
    at a load each has to meet it.

    Raises:
        CourseError: there are no runs, they mix users and rates, or one was stopped.
    """
    objective = objective or Objective()
    by_load: dict[float, list[Run]] = {}
    units = set()
    for run in runs:
        load, unit = level(run)
        by_load.setdefault(load, []).append(run)
        units.add(unit)
    if len(units) != 1:
        raise CourseError("capacity needs runs, all of users or all of rates", "see load.search")
    best, fails_at, confidence = 0.0, None, 1.0
    for load in sorted(by_load):
        verdicts = np.all([_verdicts(run, objective) for run in by_load[load]], axis=0)
        if not verdicts[0]:
            fails_at, confidence = load, confidence * (1 - verdicts.mean())
            break
        best, confidence = load, verdicts.mean()
    found = Capacity(
        objective=objective, unit=units.pop(), fails_at=fails_at, confidence=float(confidence)
    )
    if not best:
        return found
    got = summary(by_load[best][0])
    rate, e2e_s = got.output_tokens_per_s, got.e2e_p50_s
    return replace(found, load=best, output_tokens_per_s=rate, e2e_s=e2e_s)


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


def _verdicts(run: Run, objective: Objective, resamples: int = 400) -> np.ndarray:
    """Return whether the run met the objective, then whether it does with requests drawn again."""
    refuse_partial(run)
    inside = measured(run)
    error_rate = len(run.failed) / max(len(run.ok) + len(run.failed), 1)
    if not inside or error_rate > objective.error_rate or falls_behind(run):
        return np.zeros(resamples + 1, dtype=bool)
    chance = np.random.default_rng(0)
    met = np.ones(resamples + 1, dtype=bool)
    for name, limit in objective.limits_ms.items():
        every = np.array([_ms(record, name) for record in inside])
        ms = every[~np.isnan(every)]
        if ms.size:
            drawn = ms[chance.integers(ms.size, size=(resamples, ms.size))]
            rows = np.concatenate([ms[None, :], drawn])
            met &= np.percentile(rows, objective.percentile, axis=1) <= limit
    return met


def _ms(record: Record, name: str) -> float:
    """Return a latency by which an answer is judged, in milliseconds.

    One without a first token has not met its time; one of a single token has no time per further
    token, so it cannot miss it.
    """
    value_s = getattr(record, f"{name}_s")
    if value_s is None:
        return NEVER_MS if name == "ttft" else math.nan
    return value_s * 1e3
