"""One run in numbers.

The definitions of TTFT, ITL, TPOT and end-to-end latency stand in ``helpers.records``. Throughput
counts in the steady window only, see ``steady_window``.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from helpers.records import Record, Run

if TYPE_CHECKING:
    import pandas


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
        round_trip_ms: median, from client to server and back, without load.
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
    round_trip_ms: float
    client_lag_p99_ms: float
    client_cpu: float
    client_limited: bool


def summary(run: Run) -> Summary:
    """Return one run in numbers; a run without a finished answer has NaN latencies."""
    steady = steady_window(run) is not None
    start, end = window(run)
    inside = measured(run)
    times, weights = token_times(run)
    in_window = (times >= start) & (times <= end)
    length = max(end - start, 1e-9)
    output = weights[in_window].sum() / length
    prompt = sum(r.prompt_tokens for r in run.ok if start <= r.origin_s + (r.ttft_s or 0) <= end)
    ttft = milliseconds([record.ttft_s for record in inside])
    tpot = milliseconds([record.tpot_s for record in inside])
    itl = milliseconds([gap for record in inside for gap in record.itl_s])
    e2e = milliseconds([record.e2e_s for record in inside]) / 1e3
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
        round_trip_ms=run.round_trip_ms,
        client_lag_p99_ms=run.lag_p99_ms,
        client_cpu=run.client_cpu,
        client_limited=run.client_limited,
    )


def window(run: Run) -> tuple[float, float]:
    """Return the steady window in seconds, or the whole run where there is none."""
    whole = 0.0, 0.0
    if run.records:
        whole = min(r.origin_s for r in run.records), max(r.end_s for r in run.records)
    return steady_window(run) or whole


def measured(run: Run) -> list[Record]:
    """Return the good answers whose request came in the window (all of them if none did)."""
    start, end = window(run)
    return [record for record in run.ok if start <= record.origin_s <= end] or run.ok


def table(runs: Sequence[Run]) -> "pandas.DataFrame":
    """Return one row a run, one column a measure of ``Summary``, units in the names."""
    import pandas  # here, to keep a load-generating script small

    rows = pandas.DataFrame([asdict(summary(run)) for run in runs])
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


def milliseconds(seconds: list[float | None]) -> np.ndarray:
    """Return what is there of ``seconds`` in milliseconds."""
    return np.array([value for value in seconds if value is not None], dtype=float) * 1e3


def _percentiles(name: str, values: np.ndarray, unit: str, *ranks: int) -> dict[str, float]:
    found = np.percentile(values, ranks) if values.size else [np.nan] * len(ranks)
    return {
        f"{name}_p{rank}_{unit}": float(value) for rank, value in zip(ranks, found, strict=True)
    }
