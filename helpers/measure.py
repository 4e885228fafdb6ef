"""Records into answers: latency percentiles, throughput, goodput, capacity, cost.

The definitions of TTFT, ITL, TPOT and end-to-end latency stand in ``helpers.records``. Throughput
counts in the steady window only, see ``steady_window``.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from helpers.errors import CourseError
from helpers.records import Record, Run


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A service-level objective: what a customer must get.

    Args:
        ttft_ms: longest time to first token; ``None`` for no demand.
        tpot_ms: longest time per output token, likewise.
        e2e_ms: longest end-to-end latency, likewise.
        percentile: part of the requests (0 to 100) for which each of these must hold.
        error_rate: largest part (0 to 1) of requests that may fail.
    """

    ttft_ms: float | None = 500.0
    tpot_ms: float | None = 50.0
    e2e_ms: float | None = None
    percentile: float = 95.0
    error_rate: float = 0.01

    def __str__(self) -> str:
        names = {"TTFT": self.ttft_ms, "TPOT": self.tpot_ms, "end to end": self.e2e_ms}
        demands = [f"{name} p{self.percentile:g} ≤ {ms:g} ms" for name, ms in names.items() if ms]
        return ", ".join(demands)

    def holds(self, record: Record) -> bool:
        """Whether one request met every demand."""
        return record.ok and all(
            limit is None or (value is not None and value * 1e3 <= limit)
            for value, limit in (
                (record.ttft_s, self.ttft_ms),
                # An answer of one token has no time per further token, so it cannot miss it.
                (record.tpot_s or 0.0, self.tpot_ms),
                (record.e2e_s, self.e2e_ms),
            )
        )


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One run in numbers. Latencies are percentiles over the requests of the steady window.

    Args:
        label: the run's name.
        users: of a closed loop, else ``None``.
        requests: finished, the failed ones included.
        failed: of these; ``error_rate`` is their part of all.
        output_tokens: the server's count over the whole run.
        window_s: start and end of the steady window, seconds from the run's start.
        steady: whether such a window was found; otherwise it is the whole run.
        output_tokens_per_s: in the window.
        total_tokens_per_s: prompt tokens (at their first answer) included.
        requests_per_s: answers that ended in the window.
        client_lag_p99_ms: how long arrived bytes waited for the client to stamp them, or how late
            it sent what was scheduled, whichever is larger: the error of every time here.
        client_cpu: part of one core that the busiest load generator used.
        client_limited: the client was the limit, so the server can do more than was measured.
    """

    label: str
    users: int | None
    requests: int
    failed: int
    error_rate: float
    output_tokens: int
    window_s: tuple[float, float]
    steady: bool
    output_tokens_per_s: float
    total_tokens_per_s: float
    requests_per_s: float
    ttft_p50_ms: float
    ttft_p95_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    itl_p95_ms: float
    itl_p99_ms: float
    tpot_p50_ms: float
    tpot_p95_ms: float
    e2e_p50_s: float
    e2e_p95_s: float
    client_lag_p99_ms: float
    client_cpu: float
    client_limited: bool


def summary(run: Run) -> Summary:
    """Return one run in numbers; a run without a finished answer has NaN latencies."""
    window = steady_window(run)
    (start, end), steady = (window, True) if window else (_whole(run), False)
    inside = [record for record in run.ok if start <= record.origin_s <= end] or run.ok
    times, weights = token_times(run)
    in_window = (times >= start) & (times <= end)
    length = max(end - start, 1e-9)
    output = weights[in_window].sum() / length
    prompt = sum(r.prompt_tokens for r in run.ok if start <= r.origin_s + (r.ttft_s or 0) <= end)
    ttft = _ms([record.ttft_s for record in inside])
    tpot = _ms([record.tpot_s for record in inside])
    itl = _ms([gap for record in inside for gap in record.itl_s])
    e2e = _ms([record.e2e_s for record in inside]) / 1e3
    finished = [record for record in run.records if record.cause != "interrupted"]
    failed = sum(not record.ok for record in finished)
    return Summary(
        label=run.label,
        users=run.users,
        requests=len(finished),
        failed=failed,
        error_rate=failed / len(finished) if finished else 0.0,
        output_tokens=sum(record.output_tokens for record in run.records),
        window_s=(round(start, 3), round(end, 3)),
        steady=steady,
        output_tokens_per_s=float(output),
        total_tokens_per_s=float(output + prompt / length),
        requests_per_s=sum(start <= record.end_s <= end for record in run.ok) / length,
        **_percentiles("ttft", ttft, "ms", 50, 95, 99),
        **_percentiles("itl", itl, "ms", 50, 95, 99),
        **_percentiles("tpot", tpot, "ms", 50, 95),
        **_percentiles("e2e", e2e, "s", 50, 95),
        client_lag_p99_ms=run.lag_p99_ms,
        client_cpu=run.client_cpu,
        client_limited=run.client_limited,
    )


def table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row a run, one column a measure of ``Summary``, units in the names."""
    rows = pd.DataFrame([asdict(summary(run)) for run in runs])
    return rows.drop(columns=["window_s"]).set_index("label")


def token_times(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Return when output tokens arrived (seconds) and how many tokens each arrival stands for.

    A server that falls behind sends several tokens in one piece; the server's count is spread
    evenly over the pieces of an answer.
    """
    times = [np.asarray(r.token_us) / 1e6 + r.sent_s for r in run.records if r.token_us]
    if not times:
        return np.empty(0), np.empty(0)
    weights = [
        np.full(len(r.token_us), r.output_tokens / len(r.token_us))
        for r in run.records
        if r.token_us
    ]
    times, weights = np.concatenate(times), np.concatenate(weights)
    order = np.argsort(times, kind="stable")
    return times[order], weights[order]


def steady_window(run: Run, bins: int = 40) -> tuple[float, float] | None:
    """Return start and end in seconds of the part of a run in which the load was constant.

    It ends when the last request was sent, because from there on the load only falls. It starts
    where the token rate of what remains varies least: the truncation point of MSER (White 1997,
    "An effective truncation heuristic for bias reduction in simulation output"), looked for in
    the first half. ``None`` when the run is too short to tell.
    """
    times, weights = token_times(run)
    if not times.size:
        return None
    end = max(record.sent_s for record in run.records)
    begin = min(record.origin_s for record in run.records)
    if len(run.records) < 8 or end - begin < 0.3 * (times[-1] - begin):
        return None
    edges = np.linspace(begin, end, bins + 1)
    rate, _ = np.histogram(times, edges, weights=weights)
    error = [np.var(rate[cut:]) / (bins - cut) for cut in range(bins // 2)]
    return float(edges[int(np.argmin(error))]), float(end)


def goodput(run: Run, objective: Objective) -> float:
    """Return requests per second that met the objective, over the window of ``summary``.

    The measure of DistServe (Zhong et al. 2024) and of ``vllm bench serve --goodput``.
    """
    start, end = steady_window(run) or _whole(run)
    good = sum(objective.holds(r) for r in run.records if start <= r.end_s <= end)
    return good / max(end - start, 1e-9)


def meets(run: Run, objective: Objective) -> bool:
    """Whether a run met an objective: each percentile and the part of failed requests."""
    numbers = summary(run)
    start, end = numbers.window_s
    inside = [r for r in run.ok if start <= r.origin_s <= end] or run.ok
    if not inside or numbers.error_rate > objective.error_rate:
        return False
    demands = (
        ([r.ttft_s for r in inside], objective.ttft_ms),
        ([r.tpot_s for r in inside], objective.tpot_ms),
        ([r.e2e_s for r in inside], objective.e2e_ms),
    )
    return all(
        limit is None or not len(ms) or np.percentile(ms, objective.percentile) <= limit
        for ms, limit in ((_ms(values), limit) for values, limit in demands)
    )


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The answer: how many customers, and what they get.

    Args:
        objective: that had to be met.
        users: most concurrent users measured to meet it; 0 when none did.
        fails_at: fewest users measured to miss it; ``None`` when all met it, so that the true
            capacity lies at ``users`` or above, otherwise between the two.
        requests_per_s: of the run with ``users``.
        output_tokens_per_s: likewise.
    """

    objective: Objective
    users: int
    fails_at: int | None
    requests_per_s: float
    output_tokens_per_s: float

    def customers(self, *, think_time_s: float, e2e_s: float) -> int:
        """Return how many customers make that many concurrent users.

        A customer who thinks ``think_time_s`` between requests that take ``e2e_s`` is a concurrent
        user for ``e2e_s`` of every ``think_time_s + e2e_s`` (the interactive response time law).
        """
        return int(self.users * (think_time_s + e2e_s) / e2e_s)


def capacity(runs: Sequence[Run], objective: Objective | None = None) -> Capacity:
    """Return the most concurrent users of a sweep that meet the objective.

    Raises:
        CourseError: a run has no users (it was an open loop).
    """
    objective = objective or Objective()
    if any(run.users is None for run in runs) or not runs:
        raise CourseError("capacity needs closed-loop runs", "make them with load.sweep")
    ordered = sorted(runs, key=lambda run: run.users)
    verdicts = [meets(run, objective) for run in ordered]
    first_miss = verdicts.index(False) if False in verdicts else len(ordered)
    best = ordered[first_miss - 1] if first_miss else None
    numbers = summary(best) if best else None
    return Capacity(
        objective=objective,
        users=best.users if best else 0,
        fails_at=ordered[first_miss].users if first_miss < len(ordered) else None,
        requests_per_s=numbers.requests_per_s if numbers else 0.0,
        output_tokens_per_s=numbers.output_tokens_per_s if numbers else 0.0,
    )


def usd_per_million_tokens(usd_per_hour: float, tokens_per_s: float) -> float:
    """Return what a million tokens cost on a machine that is busy all the time.

    >>> round(usd_per_million_tokens(0.36, 1000), 2)
    0.1
    """
    return usd_per_hour / 3600 / tokens_per_s * 1e6


def _whole(run: Run) -> tuple[float, float]:
    if not run.records:
        return 0.0, 0.0
    return min(r.origin_s for r in run.records), max(r.end_s for r in run.records)


def _ms(seconds: list[float | None]) -> np.ndarray:
    return np.array([value for value in seconds if value is not None], dtype=float) * 1e3


def _percentiles(name: str, values: np.ndarray, unit: str, *ranks: int) -> dict[str, float]:
    found = np.percentile(values, ranks) if values.size else [np.nan] * len(ranks)
    return {
        f"{name}_p{rank}_{unit}": float(value) for rank, value in zip(ranks, found, strict=True)
    }
