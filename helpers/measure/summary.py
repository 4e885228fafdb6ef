"""One run in numbers.

The definitions of TTFT, ITL, TPOT and end-to-end latency stand in ``helpers.records``. Throughput
counts in the steady window only, see ``steady_window``.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from helpers.records import Record, Run, refuse_partial

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One run in numbers. Latencies are percentiles over the requests of the steady window.

    Args:
        label: the run's name.
        users: of a closed loop, else ``None``.
        requests: finished, the failed ones included.
        failed: how many of these failed.
        error_rate: their share, 0 to 1.
        output_tokens: the server's count over the whole run.
        steady: whether a steady window was found; if not, the whole run counts as one.
        output_tokens_per_s: in the window.
        requests_per_s: answers that ended in the window.
        client_lag_p99_ms: how long bytes that had arrived waited for their time stamp, or how late
            the client sent what was scheduled, whichever is larger: the error of every time here.
        client_limited: the client was the limit, so the server can do more than was measured.
    """

    label: str
    users: int | None
    requests: int
    failed: int
    error_rate: float
    output_tokens: int
    steady: bool
    output_tokens_per_s: float
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
    client_limited: bool


def summary(run: Run) -> Summary:
    """Return one run in numbers; a run without a finished answer has NaN latencies."""
    refuse_partial(run)
    start, end = window(run)
    length = max(end - start, 1e-9)
    inside = measured(run)
    times, weights = token_times(run)
    finished = len(run.ok) + len(run.failed)
    return Summary(
        label=run.label,
        users=run.users,
        requests=finished,
        failed=len(run.failed),
        error_rate=len(run.failed) / max(finished, 1),
        output_tokens=sum(record.output_tokens for record in run.records),
        steady=steady_window(run) is not None,
        output_tokens_per_s=float(weights[(times >= start) & (times <= end)].sum() / length),
        requests_per_s=sum(start <= record.end_s <= end for record in run.ok) / length,
        **_percentiles(inside, "ttft", "ms", 50, 95, 99),
        **_percentiles(inside, "itl", "ms", 50, 95, 99),
        **_percentiles(inside, "tpot", "ms", 50, 95),
        **_percentiles(inside, "e2e", "s", 50, 95),
        client_lag_p99_ms=run.lag_p99_ms,
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

    return pandas.DataFrame([asdict(summary(run)) for run in runs]).set_index("label")


def token_times(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Return when output tokens arrived (seconds) and how many tokens each arrival stands for.

    A server that falls behind sends several tokens in one piece; the server's count is spread
    evenly over the pieces of an answer.
    """
    answers = [record for record in run.records if record.token_us]
    if not answers:
        return np.empty(0), np.empty(0)
    pieces = np.array([len(record.token_us) for record in answers])
    sent_s = np.repeat([record.sent_s for record in answers], pieces)
    times = sent_s + np.concatenate([record.token_us for record in answers]) / 1e6
    weights = np.repeat([record.output_tokens for record in answers] / pieces, pieces)
    order = np.argsort(times, kind="stable")
    return times[order], weights[order]


def most_at_once(run: Run) -> int:
    """Return the most requests that were running at the same time."""
    changes = [(record.origin_s, 1) for record in run.records]
    changes += [(record.end_s, -1) for record in run.records]
    return int(np.cumsum([change for _, change in sorted(changes)]).max(initial=0))


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


def latencies(records: Sequence[Record], name: str) -> list[np.ndarray]:
    """Return a latency of each request that has it, in seconds.

    Args:
        records: of the requests.
        name: ``ttft``, ``tpot``, ``e2e`` (one value a request) or ``itl`` (one a gap).
    """
    values = (getattr(record, f"{name}_s") for record in records)
    return [np.atleast_1d(value) for value in values if value is not None and value != []]


def _percentiles(records: Sequence[Record], name: str, unit: str, *ranks: int) -> dict[str, float]:
    values = np.concatenate([*latencies(records, name), []])
    found = np.percentile(values, ranks) if values.size else np.full(len(ranks), np.nan)
    scale = 1e3 if unit == "ms" else 1.0
    columns = [f"{name}_p{rank}_{unit}" for rank in ranks]
    return dict(zip(columns, (found * scale).tolist(), strict=True))
