"""Records into answers: latency percentiles, throughput, goodput, capacity, cost.

``summary`` and ``table`` say what runs were like, ``interval`` and ``compare`` how sure that is
(all by one recipe, ``helpers.measure.steady``), ``capacity`` how many customers it is good for,
``saturation`` from how many users on more of them bring no more tokens,
``usd_per_million_tokens`` what it costs, and ``agreement`` whether the server's own counters say
the same. The definitions of the latencies stand in ``helpers.records``. ``answers`` asks a set of
``questions``, and ``quality`` says what is lost from one server to another.
"""

from helpers.measure.capacity import (
    Objective,
    capacity,
    goodput,
    level,
    margin,
    room,
    saturation,
    usd_per_million_tokens,
    verdict,
)
from helpers.measure.quality import answers, quality, questions, wilson
from helpers.measure.steady import Interval, compare, interval, is_steady, token_times, window
from helpers.measure.summary import agreement, most_at_once, summary, table

__all__ = [
    "Interval", "Objective", "agreement", "answers", "capacity", "compare", "goodput", "interval",
    "is_steady", "level", "margin", "most_at_once", "quality", "questions", "room", "saturation",
    "summary", "table", "token_times", "usd_per_million_tokens", "verdict", "wilson", "window",
]  # fmt: skip
