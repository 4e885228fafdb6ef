"""How sure a measured number is, and whether two differ by more than noise."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from helpers.errors import CourseError
from helpers.measure.summary import measured, token_times, window
from helpers.records import Run

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
        names: of the two.
        ratio: the second over the first, with its interval.
        real: the interval leaves 1 out.
        requests: on the side that has fewer; below ``FEWEST`` nothing is real.
    """

    measure: str
    names: tuple[str, str]
    ratio: Interval
    real: bool
    requests: int

    def __str__(self) -> str:
        percent = [(value - 1) * 100 for value in (self.ratio.low, self.ratio.high)]
        span = f"95 % interval {percent[0]:+.0f} % to {percent[1]:+.0f} %"
        first, second = self.names
        if self.requests < FEWEST:
            return f"{self.measure}: too few requests to tell ({self.requests})"
        if not self.real:
            return f"{self.measure}: no difference beyond noise ({span})"
        return f"{self.measure}: {second} against {first}: {self.ratio.value - 1:+.0%} ({span})"


def interval(runs: Run | Sequence[Run], measure: str = "ttft_p95_ms", seed: int = 0) -> Interval:
    """Return a measure with its 95 % interval.

    Requests are drawn again with replacement (Efron's percentile bootstrap); gaps between tokens
    stay with their request, because those of one answer are alike. Of repeated runs, runs are
    drawn first. The throughput's unit of drawing is a twentieth of the steady window.

    Args:
        runs: one, or repeated ones of the same settings.
        measure: a latency of ``measure.table`` (``ttft_p95_ms``, ...) or ``output_tokens_per_s``.
        seed: of the drawing.

    Raises:
        CourseError: the measure is none of these, or nothing was measured.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    drawn = _draw(runs, measure, seed)
    low, high = np.percentile(drawn, [2.5, 97.5])
    value = np.mean([_statistic(_blocks(run, measure), measure) for run in runs])
    return Interval(value=float(value), low=float(low), high=float(high))


def compare(
    first: Run | Sequence[Run], second: Run | Sequence[Run], measure: str = "output_tokens_per_s"
) -> Difference:
    """Say by how much a measure of two runs (or two sets of repeats) differs, if it does.

    A single run knows only the noise within itself: repeat runs to see that between them.

    Raises:
        CourseError: as for ``interval``, or the first is 0.
    """
    groups = [[g] if isinstance(g, Run) else list(g) for g in (first, second)]
    values = [interval(group, measure).value for group in groups]
    drawn = [_draw(group, measure, seed) for seed, group in enumerate(groups)]
    if not drawn[0].all():
        raise CourseError(f"{groups[0][0].label}: {measure} is 0, nothing can be compared with it")
    low, high = np.percentile(drawn[1] / drawn[0], [2.5, 97.5])
    requests = min(sum(len(measured(run)) for run in group) for group in groups)
    return Difference(
        measure=measure,
        names=(groups[0][0].label, groups[1][0].label),
        ratio=Interval(value=values[1] / values[0], low=float(low), high=float(high)),
        real=bool(requests >= FEWEST and (low > 1 or high < 1)),
        requests=requests,
    )


def _blocks(run: Run, measure: str) -> list[np.ndarray]:
    """Return the units of drawing: a request's values, or the rate of a part of the window."""
    found = _LATENCY.fullmatch(measure)
    if not found and measure != "output_tokens_per_s":
        hint = "e.g. ttft_p95_ms, itl_p99_ms, e2e_p50_s, output_tokens_per_s"
        raise CourseError(f"no measure is called {measure!r}", hint)
    if found:
        scale = 1e3 if found[3] == "ms" else 1.0
        values = [getattr(record, f"{found[1]}_s") for record in measured(run)]
        blocks = [np.atleast_1d(value) * scale for value in values if value not in (None, [])]
    else:
        times, weights = token_times(run)
        start, end = window(run)
        edges = np.linspace(start, end, 21)
        rates = np.histogram(times, edges, weights=weights)[0] / max(edges[1] - edges[0], 1e-9)
        blocks = list(rates[:, None])
    if not blocks:
        raise CourseError(f"{run.label}: nothing to measure {measure} on")
    return blocks


def _statistic(blocks: list[np.ndarray], measure: str) -> float:
    found, values = _LATENCY.fullmatch(measure), np.concatenate(blocks)
    return float(np.percentile(values, float(found[2])) if found else np.mean(values))


def _draw(runs: list[Run], measure: str, seed: int) -> np.ndarray:
    chance = np.random.default_rng(seed)
    blocks = [_blocks(run, measure) for run in runs]
    drawn = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        values = []
        for which in chance.integers(len(runs), size=len(runs)):
            chosen = chance.integers(len(blocks[which]), size=len(blocks[which]))
            values.append(_statistic([blocks[which][index] for index in chosen], measure))
        drawn[number] = np.mean(values)
    return drawn
