"""The server's word against ours: what its own counters say of a run."""

from typing import TYPE_CHECKING

import numpy as np

from helpers.records import Run, refuse_partial

if TYPE_CHECKING:
    import pandas


def agreement(run: Run) -> "pandas.DataFrame":
    """Return the run's numbers beside the server's own, over the same time.

    One row a measure that the server's ``/metrics`` has: output tokens, and the means of TTFT and
    of the time between tokens; ``ratio`` is ours over the server's. Empty without ``/metrics``.
    """
    import pandas

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
