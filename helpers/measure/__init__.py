"""Records into answers: latency percentiles, throughput, goodput, capacity, cost.

The public face of ``helpers.measure.summary``, ``helpers.measure.intervals``, ``helpers.measure.capacity`` and
``helpers.measure.agreement``; the definitions of the latencies stand in ``helpers.records``.
"""

from helpers.measure.agreement import agreement, to_vllm
from helpers.measure.capacity import (
    Capacity,
    Objective,
    capacity,
    goodput,
    level,
    meets,
    usd_per_million_tokens,
)
from helpers.measure.intervals import Difference, Interval, compare, interval
from helpers.measure.summary import (
    Summary,
    measured,
    steady_window,
    summary,
    table,
    token_times,
    window,
)

__all__ = [
    "Capacity", "Difference", "Interval", "Objective", "Summary", "agreement", "capacity",
    "compare", "goodput", "interval", "level", "measured", "meets", "steady_window", "summary",
    "table", "to_vllm", "token_times", "usd_per_million_tokens", "window",
]  # fmt: skip
