"""Whether two measurements differ by more than noise."""

import math
from dataclasses import dataclass

from helpers.errors import CourseError
from helpers.measure.steady import Interval, interval
from helpers.records import Run


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
