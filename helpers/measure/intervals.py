"""How sure a measured number is, and whether two differ by more than noise."""

import re
from dataclasses import dataclass

import numpy as np

from helpers.errors import CourseError
from helpers.measure.summary import latencies, measured, token_times, window
from helpers.records import Run, refuse_partial

RESAMPLES = 400
FEWEST = 5  # requests on either side of a comparison
_LATENCY = re.compile(r"(ttft|itl|tpot|e2e)_p(\d+(?:\.\d+)?)_(ms|s)")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and its 95 % bootstrap confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How one measurement relates to another.

    Args:
        measure: what is compared, a column of ``measure.table``.
        names: the labels of both.
        ratio: the second over the first, with its interval.
        real: whether the interval excludes 1.
        requests: how many the smaller side has; with fewer than ``FEWEST`` nothing is real.
    """

    measure: str
    names: tuple[str, str]
    ratio: Interval
    real: bool
    requests: int

    def __str__(self) -> str:
        if self.requests < FEWEST:
            return f"{self.measure}: too few requests to tell ({self.requests})"
        low, high = (f"{(ratio - 1) * 100:+.0f} %" for ratio in (self.ratio.low, self.ratio.high))
        span = f"(95 % interval {low} to {high})"
        if not self.real:
            return f"{self.measure}: no difference beyond noise {span}"
        first, second = self.names
        return f"{self.measure}: {second} against {first}: {self.ratio.value - 1:+.0%} {span}"


def interval(run: Run, measure: str = "ttft_p95_ms") -> Interval:
    """Return a measure with its 95 % interval.

    Requests are drawn again with replacement (Efron's percentile bootstrap); gaps between tokens
    stay with their request, because those of one answer are alike. For throughput, twentieths of
    the window take the place of requests.

    Args:
        run: what was measured.
        measure: a latency of ``measure.table`` (``ttft_p95_ms``, ...) or ``output_tokens_per_s``.

    Raises:
        CourseError: the measure is none of these, or nothing was measured.
    """
    return _interval(*_resampled(run, measure, 0))


def compare(first: Run, second: Run, measure: str = "output_tokens_per_s") -> Difference:
    """Say by how much a measure of two runs differs, if it does.

    A single run knows only the noise within itself: repeat runs to see that between them.

    Raises:
        CourseError: as for ``interval``, or the first is 0.
    """
    value, drawn = _resampled(first, measure, 0)
    other, other_drawn = _resampled(second, measure, 1)
    if not drawn.all():
        raise CourseError(f"{first.label}: {measure} is 0, nothing can be compared with it")
    ratio = _interval(other / value, other_drawn / drawn)
    requests = min(len(measured(first)), len(measured(second)))
    return Difference(
        measure=measure,
        names=(first.label, second.label),
        ratio=ratio,
        real=requests >= FEWEST and not ratio.low <= 1 <= ratio.high,
        requests=requests,
    )


def _interval(value: float, drawn: np.ndarray) -> Interval:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value=value, low=float(low), high=float(high))


def _resampled(run: Run, measure: str, seed: int) -> tuple[float, np.ndarray]:
    """Return the measure, and what it is when its units are drawn again."""
    refuse_partial(run)
    found, blocks = _LATENCY.fullmatch(measure), _blocks(run, measure)

    def statistic(chosen: list[np.ndarray]) -> float:
        values = np.concatenate(chosen)
        return float(np.percentile(values, float(found[2])) if found else np.mean(values))

    chance = np.random.default_rng(seed)
    draws = chance.integers(len(blocks), size=(RESAMPLES, len(blocks)))
    drawn = [statistic([blocks[index] for index in draw]) for draw in draws]
    return statistic(blocks), np.array(drawn)


def _blocks(run: Run, measure: str) -> list[np.ndarray]:
    """Return the units of drawing: a request's values, or the rate of a part of the window."""
    if found := _LATENCY.fullmatch(measure):
        scale = 1e3 if found[3] == "ms" else 1.0
        blocks = [values * scale for values in latencies(measured(run), found[1])]
    elif measure == "output_tokens_per_s":
        times, weights = token_times(run)
        edges = np.linspace(*window(run), 21)
        rates = np.histogram(times, edges, weights=weights)[0] / max(edges[1] - edges[0], 1e-9)
        blocks = list(rates[:, None])
    else:
        hint = "e.g. ttft_p95_ms, itl_p99_ms, e2e_p50_s, output_tokens_per_s"
        raise CourseError(f"no measure is called {measure!r}", hint)
    if not blocks:
        raise CourseError(f"{run.label}: nothing to measure {measure} on")
    return blocks
