"""Records into answers: latency percentiles, throughput, goodput, capacity, cost.

The public face of ``helpers.summary``, ``helpers.noise``, ``helpers.capacity`` and
``helpers.export``; the definitions of the latencies stand in ``helpers.records``.
"""

from helpers.capacity import (
    Capacity,
    Objective,
    capacity,
    goodput,
    level,
    meets,
    usd_per_million_tokens,
)
from helpers.export import agreement, to_vllm
from helpers.noise import Difference, Interval, compare, interval
from helpers.summary import Summary, measured, steady_window, summary, table, token_times, window

__all__ = [
    "Capacity", "Difference", "Interval", "Objective", "Summary", "agreement", "capacity",
    "compare", "goodput", "interval", "level", "measured", "meets", "steady_window", "summary",
    "table", "to_vllm", "token_times", "usd_per_million_tokens", "window",
]  # fmt: skip
