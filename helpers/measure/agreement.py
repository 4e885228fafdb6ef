"""A run for other people's tooling, and the server's word against ours."""

from datetime import datetime

import numpy as np
import pandas as pd

from helpers.measure.summary import milliseconds, token_times
from helpers.records import Run


def to_vllm(run: Run) -> dict:
    """Return a run in the form of ``vllm bench serve --save-result --save-detailed``.

    Write it with ``json.dump``. Latencies there count from sending, not from the schedule, and
    the whole run is the window, as they do.
    """
    good, arrivals = run.ok, run.header["arrivals"]
    begin = min((record.sent_s for record in run.records), default=0.0)
    duration = max((record.end_s for record in run.records), default=0.0) - begin
    output = sum(record.output_tokens for record in good)
    prompt = sum(record.prompt_tokens for record in good)
    first = [record.token_us[0] / 1e6 if record.token_us else 0.0 for record in run.records]
    result = {
        "date": datetime.fromisoformat(run.header["started_at"]).strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": "openai-chat",
        "backend": "openai-chat",
        "label": run.label,
        "model_id": run.header["endpoint"]["model"],
        "tokenizer_id": run.header["endpoint"]["model"],
        "num_prompts": len(run.records),
        "request_rate": 1 / arrivals["every_s"]
        if "every_s" in arrivals
        else arrivals.get("rate_per_s", "inf"),
        "burstiness": arrivals.get("burstiness", 1.0),
        "max_concurrency": run.users,
        "duration": duration,
        "completed": len(good),
        "failed": len(run.records) - len(good),
        "total_input_tokens": prompt,
        "total_output_tokens": output,
        "request_throughput": len(good) / duration if duration else 0.0,
        "request_goodput": None,
        "output_throughput": output / duration if duration else 0.0,
        "total_token_throughput": (output + prompt) / duration if duration else 0.0,
        "input_lens": [record.prompt_tokens for record in run.records],
        "output_lens": [record.output_tokens for record in run.records],
        "ttfts": first,
        "itls": [record.itl_s for record in run.records],
        "latencies": [record.end_s - record.sent_s for record in run.records],
        "start_times": [record.sent_s for record in run.records],
        "queue_times": [record.lag_s for record in run.records],
        "max_concurrent_requests": most_at_once(run),
        "max_output_tokens_per_s": _peak_rate(run),
        "generated_texts": ["" for _ in run.records],
        "errors": [record.error for record in run.records],
    }
    for name, values in (
        ("ttft", [time for time, record in zip(first, run.records, strict=True) if record.ok]),
        ("tpot", [record.tpot_s for record in good]),
        ("itl", [gap for record in good for gap in record.itl_s]),
        ("e2el", [record.end_s - record.sent_s for record in good]),
    ):
        ms = milliseconds(values)
        for title, function in (
            ("mean", np.mean),
            ("median", np.median),
            ("std", np.std),
            ("p99", lambda x: np.percentile(x, 99)),
        ):
            result[f"{title}_{name}_ms"] = float(function(ms)) if ms.size else 0.0
    return result


def agreement(run: Run) -> pd.DataFrame:
    """Return the run's numbers beside the server's own, over the same time.

    One row a measure that the server's ``/metrics`` has: output tokens, and the means of TTFT and
    of the time between tokens; ``ratio`` is ours over the server's. Empty without ``/metrics``.
    """
    if len(run.samples) < 2:
        return pd.DataFrame(columns=["client", "server", "ratio"])
    first, last = run.samples[0], run.samples[-1]
    delta = {name: last[name] - first[name] for name in last.keys() & first.keys()}
    rows = {"output tokens": (_sum(run, "output_tokens"), delta.get("output_tokens_total"))}
    if delta.get("ttft_count"):
        ours = np.mean([record.token_us[0] / 1e3 for record in run.ok if record.token_us])
        rows["TTFT mean, ms"] = (ours, delta["ttft_s_sum"] / delta["ttft_count"] * 1e3)
    gaps = delta.get("itl_count") or delta.get("output_tokens_total", 0) - len(run.ok)
    if delta.get("itl_s_sum") and gaps > 0:
        told = [record.token_us for record in run.ok if record.token_us]
        spans = sum((times[-1] - times[0]) / 1e3 for times in told)
        ours = spans / max(_sum(run, "output_tokens") - len(run.ok), 1)
        rows["time per output token mean, ms"] = (ours, delta["itl_s_sum"] / gaps * 1e3)
    table = pd.DataFrame(rows, index=["client", "server"]).T
    table["ratio"] = table["client"] / table["server"]
    return table


def most_at_once(run: Run) -> int:
    """Return the most requests that were running at the same time."""
    changes = [(record.origin_s, 1) for record in run.records]
    changes += [(record.end_s, -1) for record in run.records]
    return int(np.cumsum([change for _, change in sorted(changes)]).max(initial=0))


def _peak_rate(run: Run) -> float:
    """Return the most output tokens that came within one second of the run."""
    times, weights = token_times(run)
    return float(np.bincount(times.astype(int), weights).max()) if times.size else 0.0


def _sum(run: Run, field: str) -> int:
    return sum(getattr(record, field) for record in run.records)
