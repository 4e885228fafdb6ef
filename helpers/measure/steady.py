"""The recipe by which a run becomes numbers: its steady window, and what it says for sure.

* **Window.** A closed loop counts from one median answer after its last user began, until the
  first user stopped asking; an open loop from two answers after its start to its last request. So
  the load is full throughout. Where that leaves less than half an answer, the whole run counts.
* **What counts.** Tokens that arrived in the window over its length, whoever asked for them;
  TTFT by the time of the first token, all other latencies by the end of the answer.
* **Intervals** (95 %). Requests of one server are not independent, so none is drawn again: ten
  batch means of the window for a rate, sectioning into five parts in order of time for a
  percentile (Asmussen and Glynn 2007, III.5), both with Student's t.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

import numpy as np

from helpers.errors import CourseError
from helpers.records import Record, Run, refuse_partial

BATCHES, T_BATCHES = 10, 2.262  # t of 97.5 % with one degree of freedom less
SECTIONS, T_SECTIONS = 5, 2.776
LEAST = 0.01  # of a percentile: no run is surer than that
_LATENCY = re.compile(r"(ttft|itl|tpot|e2e)_p(\d+(?:\.\d+)?)_(ms|s)")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and its 95 % confidence interval; 0 to infinity where there is too little."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


def window(run: Run) -> tuple[float, float]:
    """Return the steady window in seconds, or the whole run where there is none."""
    if not run.records:
        return 0.0, 0.0
    begin, end = _full_load(run) if run.ok else (0.0, 0.0)
    if end - begin > median(record.e2e_s for record in run.ok or run.records) / 2:
        return begin, end
    return min(r.origin_s for r in run.records), max(r.end_s for r in run.records)


def is_steady(run: Run) -> bool:
    """Whether the window holds full load throughout, and no start of the server's own.

    Checked twice: by the requests in progress, whose integral must be users x time within 1 %
    (Little 1961), and by MSER-5 (White, Cobb and Spratt 2000): leaving out more of the window's
    token rate must not halve its error.
    """
    refuse_partial(run)
    begin, end = window(run)
    if not run.ok or (begin, end) != _full_load(run):
        return False
    think_s = run.header["arrivals"].get("think_time_s", 0.0)
    busy_s = sum(min(r.end_s + think_s, end) - max(r.origin_s, begin) for r in run.records
                 if r.end_s + think_s > begin and r.origin_s < end)  # fmt: skip
    between_s = 0.002 * sum(begin < r.end_s < end for r in run.records)  # the client's own turn
    if run.users and abs(busy_s / (run.users * (end - begin)) - 1) > 0.01 + between_s / busy_s:
        return False
    rates = rate_in(run, 100).reshape(20, 5).mean(axis=1)
    # A twentieth is no drift: even answers beat with the parts.
    error = [(np.var(rates[cut:]) + (rates.mean() / 20) ** 2) / (20 - cut) for cut in range(11)]
    return bool(min(error) > error[0] / 2)


def _full_load(run: Run) -> tuple[float, float]:
    """Return from when to when all users, or the whole schedule, were asking."""
    answer_s = median(record.e2e_s for record in run.ok)
    if run.users is None:
        came = [record.origin_s for record in run.records]
        return min(came) + 2 * answer_s, max(came)
    first: dict[int, Record] = {}
    last: dict[int, float] = {}
    for record in run.records:
        first.setdefault(record.user, record)
        last[record.user] = record.end_s
    # Users who begin together wait longest at first.
    answer_s = max(answer_s, median(record.e2e_s for record in first.values()))
    begin = max(record.origin_s for record in first.values()) + answer_s
    if not run.ends:  # it goes on
        return begin, max(last.values())
    return begin, min(last.values()) + run.header["arrivals"].get("think_time_s", 0.0)


def token_times(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Return when output tokens arrived (seconds) and how many tokens each arrival stands for.

    A server that falls behind sends several tokens in one piece; the server's count is spread
    evenly over the pieces of an answer. Of one that was cut off nobody knows the count: its
    pieces are as large as the others'.
    """
    answers = [record for record in run.records if record.token_us]
    if not answers:
        return np.empty(0), np.empty(0)
    pieces = np.array([len(record.token_us) for record in answers])
    tokens = np.array([record.output_tokens for record in answers], dtype=float)
    whole = np.array([record.ok for record in answers])
    if whole.any():
        tokens[~whole] = pieces[~whole] * tokens[whole].sum() / pieces[whole].sum()
    sent_s = np.repeat([record.sent_s for record in answers], pieces)
    times = sent_s + np.concatenate([record.token_us for record in answers]) / 1e6
    order = np.argsort(times, kind="stable")
    return times[order], np.repeat(tokens / pieces, pieces)[order]


def answers_per_s(run: Run, answers: Iterable[Record]) -> float:
    """Return how many of a run's answers the window holds a second.

    One that it cuts counts by the share of its tokens that arrived in it. By their ends alone, the
    answers of users who keep step fall out of the window together.
    """
    begin, end = window(run)
    times = (record.sent_s + np.array(record.token_us or (0,)) / 1e6 for record in answers)
    held = sum(float(np.mean((begin <= at) & (at <= end))) for at in times)
    return held / max(end - begin, 1e-9)


def rate_in(run: Run, parts: int) -> np.ndarray:
    """Return the tokens per second in each of so many equal parts of the window."""
    times, weights = token_times(run)
    edges = np.linspace(*window(run), parts + 1)
    return np.histogram(times, edges, weights=weights)[0] / max(edges[1] - edges[0], 1e-9)


def samples(run: Run, name: str) -> list[np.ndarray]:
    """Return a latency of each request of the window (of all, if there are none), in seconds.

    Args:
        run: what was measured.
        name: ``ttft``, ``tpot``, ``e2e`` (one value a request) or ``itl`` (one a gap).

    Returns:
        An array a request, in order of time. An answer that was cut off has its first token.
    """
    counted = [r for r in run.records if r.ok or (name == "ttft" and r.cause == "interrupted")]
    timed = []
    for record in counted:
        value = getattr(record, f"{name}_s")
        if value is not None and (times := np.atleast_1d(value)).size:
            at = record.origin_s + times[0] if name == "ttft" else record.end_s
            timed.append((at, times))
    timed.sort(key=lambda pair: pair[0])
    begin, end = window(run)
    return [value for at, value in timed if begin <= at <= end] or [value for _, value in timed]


def interval(run: Run, measure: str = "ttft_p95_ms") -> Interval:
    """Return a measure with its 95 % interval.

    Args:
        run: what was measured.
        measure: a latency of ``measure.table`` (``ttft_p95_ms``, ...) or ``output_tokens_per_s``.

    Raises:
        CourseError: the measure is none of these, or nothing was measured.
    """
    refuse_partial(run)
    if found := _LATENCY.fullmatch(measure):
        values = samples(run, found[1])
        if not values:
            raise CourseError(f"{run.label}: nothing to measure {measure} on")
        scale = 1e3 if found[3] == "ms" else 1.0
        return _percentile([scale * value for value in values], float(found[2]))
    if measure != "output_tokens_per_s":
        hint = "e.g. ttft_p95_ms, itl_p99_ms, e2e_p50_s, output_tokens_per_s"
        raise CourseError(f"no measure is called {measure!r}", hint)
    rates = rate_in(run, BATCHES)
    error = T_BATCHES * rates.std(ddof=1) / BATCHES**0.5
    return _around(rates.mean(), error)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How one measurement relates to another.

    Args:
        measure: what is compared, a column of ``measure.table``.
        names: the labels of both.
        ratio: the second over the first, with its 95 % interval.
    """

    measure: str
    names: tuple[str, str]
    ratio: Interval

    @property
    def real(self) -> bool:
        """Whether the interval excludes 1."""
        return not self.ratio.low <= 1 <= self.ratio.high

    def __str__(self) -> str:
        if self.ratio.high == math.inf:
            return f"{self.measure}: too few requests to tell"
        low, high = (f"{(ratio - 1) * 100:+.0f} %" for ratio in (self.ratio.low, self.ratio.high))
        span = f"(95 % interval {low} to {high})"
        if not self.real:
            return f"{self.measure}: no difference beyond noise {span}"
        first, second = self.names
        return f"{self.measure}: {second} against {first}: {self.ratio.value - 1:+.0%} {span}"


def compare(first: Run, second: Run, measure: str = "output_tokens_per_s") -> Difference:
    """Say by how much a measure of two runs differs, if it does.

    The interval of the ratio comes from those of both (MOVER; Zou and Donner 2008). A single run
    knows only the noise within itself: repeat runs to see that between them.

    Raises:
        CourseError: as for ``interval``, or the first is 0.
    """
    one, other = interval(first, measure), interval(second, measure)
    if not (one.value and other.value):
        zero = first if other.value else second
        raise CourseError(f"{zero.label}: {measure} is 0, nothing can be compared with it")
    value = other.value / one.value
    down = math.hypot(1 - other.low / other.value, one.high / one.value - 1)
    up = math.hypot(other.high / other.value - 1, 1 - one.low / one.value)
    ratio = Interval(value=value, low=max(0.0, value * (1 - down)), high=value * (1 + up))
    return Difference(measure=measure, names=(first.label, second.label), ratio=ratio)


def _percentile(values: list[np.ndarray], rank: float) -> Interval:
    """Return a percentile over requests in order of time, by sectioning."""
    found = np.percentile(np.concatenate(values), rank)
    if len(values) < SECTIONS:
        return Interval(value=float(found), low=0.0, high=np.inf)
    parts = np.array_split(np.arange(len(values)), SECTIONS)
    each = [np.percentile(np.concatenate([values[i] for i in part]), rank) for part in parts]
    variance = np.square(np.array(each) - found).sum() / (SECTIONS - 1)
    # Equal answers keep the phases in which their users began, and those of another run differ.
    return _around(found, max(T_SECTIONS * (variance / SECTIONS) ** 0.5, LEAST * found))


def _around(value: float, error: float) -> Interval:
    low = max(0.0, float(value - error))
    return Interval(value=float(value), low=low, high=float(value + error))
