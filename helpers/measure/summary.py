"""One run in numbers, and whether the server's own counters agree.

The definitions of TTFT, ITL, TPOT and end-to-end latency stand in ``helpers.records``, and what is
counted of a run in ``helpers.measure.steady``.
"""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pandas

from helpers.measure.steady import answers_per_s, is_steady, rate_in, samples
from helpers.records import Run, refuse_partial


def summary(run: Run) -> SimpleNamespace:
    """Return one run in numbers: all columns of ``table``, each an attribute.

    Args:
        run: what was measured; without a finished answer its latencies are NaN.

    Returns:
        ``label``, ``users`` (``None`` in an open loop), ``requests`` that finished, ``failed``
        of them and their share ``error_rate`` (0 to 1), and ``output_tokens``, the server's count
        over the whole run;
        ``steady``: whether the load was full and the server settled in the window; if not, the
        run was too short, and its numbers are rough;
        ``output_tokens_per_s`` and ``requests_per_s`` in the window;
        ``ttft_p50_ms``, ``ttft_p95_ms``, ``ttft_p99_ms``, the same of ``itl``,
        ``tpot_p50_ms``, ``tpot_p95_ms``, ``e2e_p50_s``, ``e2e_p95_s``: over the window's requests;
        ``client_lag_p99_ms``: how long bytes that had arrived waited for their time stamp, or how
        late the client sent what was scheduled, whichever is larger: the error of every time here;
        ``client_limited``: the client was the limit, so the server can do more than was measured.
    """
    refuse_partial(run)
    finished = len(run.ok) + len(run.failed)
    return SimpleNamespace(
        label=run.label,
        users=run.users,
        requests=finished,
        failed=len(run.failed),
        error_rate=len(run.failed) / max(finished, 1),
        output_tokens=sum(record.output_tokens for record in run.records),
        steady=is_steady(run),
        output_tokens_per_s=float(rate_in(run, 1)[0]),
        requests_per_s=answers_per_s(run, run.ok),
        **_percentiles(run, "ttft", "ms", 50, 95, 99),
        **_percentiles(run, "itl", "ms", 50, 95, 99),
        **_percentiles(run, "tpot", "ms", 50, 95),
        **_percentiles(run, "e2e", "s", 50, 95),
        client_lag_p99_ms=run.lag_p99_ms,
        client_limited=run.client_limited,
    )


def table(runs: Sequence[Run]) -> pandas.DataFrame:
    """Return one row a run, one column a measure of ``summary``, units in the names."""
    return pandas.DataFrame([vars(summary(run)) for run in runs]).set_index("label")


def agreement(run: Run) -> pandas.DataFrame:
    """Return the run's numbers beside the server's own, over the same time.

    One row a measure that the server's ``/metrics`` has: output tokens, and the means of TTFT and
    of the time between tokens; ``ratio`` is ours over the server's. Empty without ``/metrics``.
    """
    refuse_partial(run)
    first, last = (run.samples or [{}])[0], (run.samples or [{}])[-1]
    server = {name: last[name] - first[name] for name in last.keys() & first.keys()}
    told = [record.token_us for record in run.ok if record.token_us]
    tokens = sum(record.output_tokens for record in run.records)
    rows: dict[str, tuple[float, float]] = {}
    if generated := server.get("output_tokens_total"):
        rows["output tokens"] = tokens, generated
    if server.get("ttft_count"):
        ours = float(np.mean([times[0] for times in told])) / 1e3
        rows["TTFT mean, ms"] = ours, server["ttft_s_sum"] / server["ttft_count"] * 1e3
    gaps = server.get("itl_count") or server.get("output_tokens_total", 0) - len(run.ok)
    if server.get("itl_s_sum") and gaps > 0:
        spans_ms = sum(times[-1] - times[0] for times in told) / 1e3
        ours = spans_ms / max(tokens - len(run.ok), 1)
        rows["time per output token mean, ms"] = ours, server["itl_s_sum"] / gaps * 1e3
    table = pandas.DataFrame.from_dict(rows, orient="index", columns=["client", "server"])
    return table.assign(ratio=table["client"] / table["server"])


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
