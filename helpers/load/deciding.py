"""What comes next in a search, and when a level has been measured for long enough."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING

from helpers.records import Run

if TYPE_CHECKING:
    from helpers.measure import Interval, Objective

LOOKS = (2.0, 4.0, 6.0, 9.0, 13.0)  # answer times of steady load at which a search looks
HOPELESS = 8  # failures without one answer
EARLY, FAR = 4.0, 1.4  # looks before that only end a level that is so far from the promise
SLOWEST_S = 120.0  # the last look at an open loop comes no sooner: near saturation it needs that
ANSWERS = 4  # for each answer time of a sweep, at the least


def next_load(
    margins: dict[float, "Interval"],
    start: float,
    limit: float,
    precision: float,
    whole: bool,
    room: float = math.inf,
) -> float | None:
    """Return the load that a search measures next, ``None`` at its end.

    Args:
        margins: of the loads so far, the latency over what was promised (``measure.margin``).
        start: first load; of rates a hundredth of it is the least that is tried.
        limit: highest load to try.
        precision: the bracket's width, as a part of it, at which the search ends.
        whole: loads are whole numbers.
        room: users above which requests wait for others to end, so that latency jumps there.
    """
    from helpers.measure.capacity import crossing

    if not margins:
        return start
    values = {load: margin.value for load, margin in margins.items()}
    top, step = max(values), 1 + 0.7 * precision
    high = min((load for load in values if values[load] > 1), default=math.inf)
    low = max((load for load in values if load < high), default=0.0)
    if high - low <= max(precision * high, float(whole)) or high == math.inf:
        if margins[top].low > 1 or top >= limit:
            return None
        # Double, or only just pass the load at which it will probably be missed for sure.
        guess = 1.15 * top if high < math.inf else crossing(values, beyond=True)
        found, low, high = min(max(guess, top) * step, 2 * top, limit), top, limit + 1
    elif low and math.isfinite(values[high]):
        # Close to a load that was measured it teaches little: better beyond the crossing. Where
        # latency jumps, the crossings creep up from one side: then half-way.
        same = len({value > 1 for value in list(values.values())[-2:]}) == 1
        guess = (low * high) ** 0.5 if same and high > 1.3 * low else crossing(values)
        found = min(max(guess, low * step), high / step)
        if whole and low < room < high:
            found = room
    else:
        found = (low + high) / 2
    least = 1 if whole else start / 100
    if whole:
        found = min(max(round(found), low + 1), high - 1)
    return found if low < found < high and found >= least else None


class Enough:
    """Says of a level that goes on whether it has been measured for long enough.

    Args:
        looks: after how many answer times of steady load to look.
        objective: what a look may decide; ``None``: the last look ends it, and only when there
            are four times as many answers.
    """

    def __init__(self, looks: Sequence[float], objective: "Objective | None") -> None:
        self.looks, self.objective, self.at = list(looks), objective, 1.0

    def __call__(self, elapsed_s: float, path: Path) -> bool:
        """Look, if it is time."""
        if elapsed_s < self.at:
            return False
        run = Run.read(path, allow_partial=True)  # it goes on
        if not run.ok:
            self.at = 1.5 * elapsed_s
            return len(run.failed) >= HOPELESS
        arrivals, answer_s = run.header["arrivals"], median(record.e2e_s for record in run.ok)
        begin_s, unit_s = 2 * answer_s, max(answer_s, SLOWEST_S / LOOKS[-1])
        if run.users:
            begin_s = arrivals["spread_s"] + answer_s
            unit_s = fmean(record.e2e_s for record in run.ok) + arrivals["think_time_s"]
        answers = 0.0 if self.objective else ANSWERS * self.looks[0] / (run.users or 1)
        self.at = begin_s + max(self.looks[0], answers) * unit_s
        if elapsed_s < self.at:
            return False
        far = FAR if self.looks.pop(0) < EARLY else 1.0
        if not (self.looks and self.objective):
            return not self.looks
        self.at = begin_s + self.looks[0] * unit_s  # until then the file need not be read again
        found = margin_of(run, self.objective)
        return found.high * far <= 1 or found.low > far


def margin_of(run: Run, objective: "Objective") -> "Interval":
    """Return how a run's latencies stand to the promise (``measure.margin``)."""
    from helpers.measure import margin  # only a search judges what it measured

    return margin(run, objective)
