"""Runs at several levels of load: a sweep over given ones, a search for the highest that holds."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from time import monotonic
from typing import TYPE_CHECKING, Any

from helpers.endpoint import Endpoint
from helpers.load.arrivals import Arrivals, ClosedLoop
from helpers.load.deciding import FAR, LOOKS, Enough, margin_of, next_load
from helpers.load.runs import run
from helpers.load.workload import Workload, to_spec, unseen
from helpers.progress import Progress
from helpers.records import Run

if TYPE_CHECKING:
    from helpers.measure import Interval, Objective

RISES = 1.07  # a doubling of the users that brings less has not made throughput rise


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
        looks: after how many answer times to look at a level, unless ``options`` end it.
        after: a sweep of the same server and workload; what it decides by far is not repeated.
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
    while (
        load := next_load(levels.margins, start, limit, precision, whole, levels.room)
    ) and levels.has_time(load):
        # Half a user off, because a sweep before may have asked the questions of a whole one.
        if (await levels.play(load, load + 0.5, make(int(load) if whole else load))).stopped:
            break
    else:
        if load:
            levels.say("its time is over; with the same folder and a larger budget_s it goes on")
    return sorted(levels.runs, key=lambda run: run.header["load"])


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
        margin = margin_of(run, objective)
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
                options |= {"duration_s": limit_s, "enough": Enough(self.looks, self.objective)}
            found = await run(self.endpoint, work, arrivals, **options)
        found.header["load"] = load
        self.runs.append(found)
        self.learn(load, found)
        if self.objective:
            self.margins[load] = margin_of(found, self.objective)
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
