"""When requests are sent: a closed loop of users, or an open loop that waits for nobody.

``times`` of an open loop yields the moments at which it asks, whatever the server does.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, get_args

import msgspec

from helpers.errors import CourseError, above_zero
from helpers.load.traces import Replay
from helpers.load.workload import Workload

BEGIN_S = 0.02  # from the word to begin to a run's time 0


@dataclass(frozen=True, kw_only=True)
class ClosedLoop:
    """A fixed number of users; each waits for its answer, thinks, and asks again.

    Args:
        users: how many, so at most that many requests are running.
        think_time_s: pause of a user between an answer and the next request.
        spread_s: time over which they begin, evenly; at least a millisecond each. Users who
            begin together stay in step, and wait for each other's prompts as no real crowd does:
            ``sweep`` and ``search`` spread them over the time of one answer.
    """

    users: int
    think_time_s: float = 0.0
    spread_s: float = 0.0

    def __post_init__(self) -> None:
        times_s = min(self.think_time_s, self.spread_s)
        if self.users != int(self.users) or self.users < 1 or not times_s >= 0:
            raise CourseError(f"nobody can be {self!r}", "whole users from 1, a time from 0 s")
        object.__setattr__(self, "users", int(self.users))  # also of NumPy's numbers

    def __str__(self) -> str:
        think = f", {self.think_time_s:g} s think time" if self.think_time_s else ""
        return f"{self.users} user{'s' if self.users > 1 else ''}{think}"


@dataclass(frozen=True, kw_only=True)
class Constant:
    """One request every ``every_s`` seconds."""

    every_s: float

    def __post_init__(self) -> None:
        above_zero(every_s=self.every_s)

    def __str__(self) -> str:
        return f"a request every {self.every_s:.3g} s"

    def times(self) -> Iterator[float]:
        """Yield the scheduled times in seconds from the start."""
        return (index * self.every_s for index in count())


@dataclass(frozen=True, kw_only=True)
class Gamma:
    """Requests whose gaps are gamma distributed.

    Args:
        rate_per_s: mean rate.
        burstiness: shape of the gamma distribution as in ``vllm bench serve``: 1 is Poisson,
            below 1 requests come in bursts, above 1 more evenly.
        seed: of the random gaps.
    """

    rate_per_s: float
    burstiness: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        above_zero(rate_per_s=self.rate_per_s, burstiness=self.burstiness)

    def __str__(self) -> str:
        return f"{self.rate_per_s:.3g} requests/s ({type(self).__name__})"

    def times(self) -> Iterator[float]:
        """Yield the scheduled times in seconds from the start."""
        chance, at = random.Random(self.seed), 0.0  # noqa: S311
        while True:
            at += chance.gammavariate(self.burstiness, 1 / (self.rate_per_s * self.burstiness))
            yield at


class Poisson(Gamma):
    """Requests of independent customers: ``rate_per_s`` on average, at random moments."""


Arrivals = ClosedLoop | Constant | Gamma | Replay
KINDS = {kind.__name__: kind for kind in (Poisson, *get_args(Arrivals | Workload))}


def from_spec(spec: dict) -> Any:
    """Return the workload or the arrivals that ``to_spec`` wrote down."""
    return msgspec.convert(spec, KINDS[spec["kind"]])
