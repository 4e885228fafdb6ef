"""Runs at several levels of load: a sweep over given ones, a search for the highest that holds."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from time import monotonic
from typing import TYPE_CHECKING, Any

from helpers.endpoint import Endpoint
from helpers.load.arrivals import Arrivals, ClosedLoop
from helpers.load.runs import run
from helpers.load.workload import Workload, to_spec, unseen
from helpers.progress import Progress
from helpers.records import Run

if TYPE_CHECKING:
    from helpers.measure import Interval, Objective

LOOKS = (2.0, 4.0, 6.0, 9.0, 13.0)  # answer times of steady load at which a search looks
HOPELESS = 8  # failures without one answer
EARLY, FAR = 4.0, 1.4  # looks before that only end a level that is so far from the promise
SLOWEST_S = 120.0  # the last look at an open loop comes no sooner: near saturation it needs that
RISES = 1.07  # a doubling of the users that brings less has not made throughput rise
ANSWERS = 4  # for each answer time of a sweep, at the least


async def sweep(
    endpoint: Endpoint,
    workload: Workload,
    *,
    users: Sequence[int] | None = None,
    answer_times: float = 13.0,
    folder: str | Path | None = None,
    budget_s: float = 1200.0,
    usd_per_hour: float | None = None,
    **options: Any,
) -> list[Run]:
    """Run a closed loop for each number of users and return the runs.

    Unless numbers are given, the users are doubled until throughput stops rising: until
    requests wait in the server for others to end, or two doublings have brought less than 7 % each.

    The users of a level begin spread over the time of an answer; what is in flight when a level
    has been measured for long enough is cut off.

    Args:
        endpoint: the server.
        workload: what is asked; unless prompts are given, of another seed in each run.
        users: numbers of users, one run each; by default 1, 2, 4 and so on.
        answer_times: how long each level is measured, in times of an answer (and for four times
            as many answers), unless ``requests`` or ``duration_s`` is given. Fewer are quicker,
            and their intervals wider.
        folder: where the runs' files go, by default ``runs/``. What a sweep that was stopped has
            measured there is not measured again.
        budget_s: the most time that it may take; the last levels are cut short.
        usd_per_hour: price of the machine, to be told what that costs at most.
        options: as for ``run``; on an executor, whose records come at the end, one of them must
            be ``requests`` or ``duration_s``.
    """
    levels = _Levels(endpoint, workload, (answer_times,), options, folder, budget_s)
    levels.tell("sweep", usd_per_hour)
    for done, count in enumerate(users or (2**n for n in range(20))):
        share_s = levels.left_s / (len(users) - done) if users else levels.left_s
        if not users and (levels.has_stopped_rising() or not levels.has_time(count)):
            break
        if (await levels.play(count, count, ClosedLoop(users=count), share_s)).interrupted:
            break
    return levels.runs


async def search(
    endpoint: Endpoint,
    workload: Workload,
    objective: "Objective",
    *,
    arrivals: Callable[[float], Arrivals] | None = None,
    start: float = 1,
    limit: float = 1024,
    precision: float = 0.1,
    looks: Sequence[float] = LOOKS,
    after: Sequence[Run] = (),
    folder: str | Path | None = None,
    budget_s: float | None = None,
    usd_per_hour: float | None = None,
    **options: Any,
) -> list[Run]:
    """Find the highest load that meets an objective: double until it fails, then close in.

    A level ends as soon as the percentile's 95 % interval excludes the promise (by far, at the
    first look), and after the last look in any case: then it may be *undecided*.
    ``measure.capacity(runs, objective)`` reads the answer from the runs, which are also the sweep
    that the plots take.

    Args:
        endpoint: the server.
        workload: what is asked.
        objective: what must be met.
        arrivals: makes the arrivals of a load, by default ``n`` users in a closed loop; e.g.
            ``lambda rate: Poisson(rate_per_s=rate)`` for the highest request rate, or
            ``lambda n: ClosedLoop(users=n, think_time_s=20)`` for customers.
        start: first load; a hundredth of it is the least that is tried.
        limit: highest load to try.
        precision: stop when the bracket is narrower than this part of it (or than one user).
        looks: after how many answer times to look at a level, unless ``requests`` or
            ``duration_s`` is given.
        folder: where the runs' files go, by default as for ``run``. A search that was stopped
            goes on from them; a new one needs a new folder.
        budget_s: the most time that it may take, by default 350 (at a rate 900, because a queue
            grows slowly). With more of it and the same folder, a search that it ended goes on.
        usd_per_hour: price of the machine, to be told what that costs at most.
        options: as for ``sweep``.
    """
    make = arrivals or (lambda users: ClosedLoop(users=int(users)))
    whole = isinstance(make(int(start) or 1), ClosedLoop)
    budget_s = budget_s or (350.0 if whole else 900.0)
    levels = _Levels(endpoint, workload, looks, options, folder, budget_s, objective)
    levels.tell("search", usd_per_hour)
    for known in after:
        levels.keep(known, objective)
    least = 1 if whole else start / 100

    def following() -> float | None:
        known = levels.margins
        return next_load(known, limit, precision, least, whole, levels.room) if known else start

    while (load := following()) and levels.has_time(load):
        # Half a user off, because a sweep before may have asked the questions of a whole one.
        if (await levels.play(load, load + 0.5, make(int(load) if whole else load))).stopped:
            break
    else:
        if load:
            levels.say("its time is over; with the same folder and a larger budget_s it goes on")
    return sorted(levels.runs, key=lambda run: run.header["load"])


def next_load(
    margins: dict[float, "Interval"],
    limit: float,
    precision: float,
    least: float,
    whole: bool,
    room: float = math.inf,
) -> float | None:
    """Return the load that a search measures next, ``None`` at its end.

    Args:
        margins: of the loads so far, the latency over what was promised (``measure.margin``).
        limit: highest load to try.
        precision: the bracket's width, as a part of it, at which the search ends.
        least: lowest load to try.
        whole: loads are whole numbers.
        room: users above which requests wait for others to end, so that latency jumps there.
    """
    from helpers.measure.capacity import crossing

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
    if whole:
        found = min(max(round(found), low + 1), high - 1)
    return found if low < found < high and found >= least else None


@dataclass
class _Levels:
    """What the levels of a sweep or search share, and what they have learned of the server."""

    endpoint: Endpoint
    workload: Workload
    looks: Sequence[float]
    options: dict  # of ``run``; with an end in them there are no looks
    folder: str | Path | None
    budget_s: float
    objective: "Objective | None" = None
    runs: list[Run] = field(default_factory=list)
    margins: dict[float, "Interval"] = field(default_factory=dict)
    answers: dict[float, float] = field(default_factory=dict)  # seconds of one, at each load

    def tell(self, what: str, usd_per_hour: float | None) -> None:
        """Begin to count the time, and say how much it may be."""
        self.until = monotonic() + self.budget_s
        price = f", ${usd_per_hour * self.budget_s / 3600:.2f}" if usd_per_hour else ""
        self.say(f"this {what} takes at most {self.budget_s / 60:.3g} minutes{price} (budget_s)")

    def say(self, line: str) -> None:
        """Show a line that stays."""
        Progress(keep=True, shown=self.options.get("progress", True))(line)

    @property
    def left_s(self) -> float:
        """The time that is left."""
        return max(self.until - monotonic(), 0.1)

    def expected_s(self, load: float) -> float:
        """Return how long an answer will probably take at a load; 0 where nobody knows."""
        known = sorted(self.answers.items())[-2:]  # it grows linearly with the load
        if len(known) < 2:
            return known[0][1] if known else 0.0
        (low, less_s), (high, more_s) = known
        guess_s = more_s + (more_s - less_s) / (high - low) * (load - high)
        return max(guess_s, min(self.answers.values()))

    def has_time(self, load: float) -> bool:
        """Whether a level can be looked at before the time is over."""
        return self.left_s > (2 + self.looks[0]) * self.expected_s(load) + 0.1

    def has_stopped_rising(self) -> bool:
        """Whether more users have stopped to bring more tokens."""
        from helpers.measure import summary

        if not self.runs:
            return False
        rates = [summary(run).output_tokens_per_s for run in self.runs[-3:]]
        flat = [more < RISES * less for less, more in pairwise(rates)]
        return self.room < math.inf or (len(flat) == 2 and all(flat))

    @property
    def room(self) -> float:
        """How many requests the server takes at once, as far as that has been seen."""
        from helpers.measure.capacity import room

        return min(map(room, self.runs), default=math.inf)

    def keep(self, run: Run, objective: "Objective") -> None:
        """Take what another sweep has measured, where it decides by far."""
        load = run.header["load"] = run.users or 0
        self.learn(load, run)
        margin = _margin(run, objective)
        if margin.high * FAR <= 1 or margin.low > FAR:
            self.runs.append(run)
            self.margins[load] = margin

    def learn(self, load: float, run: Run) -> None:
        """Remember how long an answer, and the thinking after it, took at a load."""
        if run.ok:
            pause_s = run.header["arrivals"].get("think_time_s", 0.0)
            self.answers[load] = fmean(record.e2e_s for record in run.ok) + pause_s

    async def play(
        self, load: float, number: float, arrivals: Arrivals, limit_s: float = math.inf
    ) -> Run:
        """Run one level, or take it from its file, and learn from it; its number is the seed's."""
        name = f"{load:08.2f}" if self.objective else f"{load:04.0f}_users"
        path = Path(self.folder) / f"{name}.jsonl" if self.folder else None
        work, limit_s = unseen(self.workload, number), min(limit_s, self.left_s)
        asked = json.loads(json.dumps([to_spec(work), to_spec(arrivals)]))  # as a file has it
        found = self.before(path, *asked)
        if found is None:
            options = {**self.options, "path": path, "after": self.runs}
            if not options.keys() & {"requests", "duration_s"}:
                if isinstance(arrivals, ClosedLoop):
                    if not self.answers and arrivals.users > 1:
                        lone, ahead = replace(arrivals, users=1), unseen(work, 0.25)
                        probe = await run(self.endpoint, ahead, lone, requests=2, **self.options)
                        self.learn(1, probe)
                    arrivals = replace(arrivals, spread_s=min(self.expected_s(load), limit_s / 4))
                options |= {"duration_s": limit_s, "enough": _Enough(self.looks, self.objective)}
            found = await run(self.endpoint, work, arrivals, **options)
        found.header["load"] = load
        self.runs.append(found)
        self.learn(load, found)
        if self.objective:
            self.margins[load] = _margin(found, self.objective)
        return found

    def before(self, path: Path | None, work: dict, arrivals: dict) -> Run | None:
        """Return the run that an earlier call left in this file, if it asked the same."""
        if path is None or not path.exists():
            return None
        found = Run.read(path)
        was = {**found.header["arrivals"], "spread_s": arrivals.get("spread_s")}
        same = was == {"spread_s": None, **arrivals} and found.header["workload"] == work
        if same and found.header["model"] == self.endpoint.model and not found.interrupted:
            self.say(f"{found.label}: as measured before, in {path}")
            return found
        path.rename(path.with_suffix(f".{path.stat().st_mtime_ns}.jsonl"))  # nothing is lost
        return None


class _Enough:
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
        found = _margin(run, self.objective)
        return found.high * far <= 1 or found.low > far


def _margin(run: Run, objective: "Objective") -> "Interval":
    from helpers.measure import margin  # only a search judges what it measured

    return margin(run, objective)
