"""One run in numbers.

The definitions of TTFT, ITL, TPOT and end-to-end latency stand in ``helpers.records``, and what is
counted of a run in ``helpers.measure.steady``.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from helpers.measure.steady import is_steady, rate_in, samples, window
from helpers.records import Run, refuse_partial

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
        steady: whether the load was full and the server settled in the window; if not, the run
            was too short, and its numbers are rough.
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
    finished = len(run.ok) + len(run.failed)
    return Summary(
        label=run.label,
        users=run.users,
        requests=finished,
        failed=len(run.failed),
        error_rate=len(run.failed) / max(finished, 1),
        output_tokens=sum(record.output_tokens for record in run.records),
        steady=is_steady(run),
        output_tokens_per_s=float(rate_in(run, 1)[0]),
        requests_per_s=sum(start <= r.end_s <= end for r in run.ok) / max(end - start, 1e-9),
        **_percentiles(run, "ttft", "ms", 50, 95, 99),
        **_percentiles(run, "itl", "ms", 50, 95, 99),
        **_percentiles(run, "tpot", "ms", 50, 95),
        **_percentiles(run, "e2e", "s", 50, 95),
        client_lag_p99_ms=run.lag_p99_ms,
        client_limited=run.client_limited,
    )


def table(runs: Sequence[Run]) -> "pandas.DataFrame":
    """Return one row a run, one column a measure of ``Summary``, units in the names."""
    import pandas  # here, to keep a load-generating script small

    return pandas.DataFrame([asdict(summary(run)) for run in runs]).set_index("label")


def most_at_once(run: Run) -> int:
    """Return the most requests that were running at the same time."""
    changes = [(record.origin_s, 1) for record in run.records]
    changes += [(record.end_s, -1) for record in run.records]
    return int(np.cumsum([change for _, change in sorted(changes)]).max(initial=0))


def _percentiles(run: Run, name: str, unit: str, *ranks: int) -> dict[str, float]:
    values = np.concatenate([*samples(run, name), []])
    found = np.percentile(values, ranks) if values.size else np.full(len(ranks), np.nan)
    scale = 1e3 if unit == "ms" else 1.0
    columns = [f"{name}_p{rank}_{unit}" for rank in ranks]
    return dict(zip(columns, (found * scale).tolist(), strict=True))
