"""When requests are sent: a closed loop of users, or an open loop that waits for nobody.

``times`` of an open loop yields the moments at which it asks, whatever the server does.
"""

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path

from helpers.errors import CourseError

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


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Recorded arrival times, repeated.

    Args:
        times_s: seconds from the start, ascending.
    """

    times_s: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "times_s", tuple(self.times_s))
        ordered = all(0 <= a <= b < math.inf for a, b in pairwise((0.0, *self.times_s)))
        if not (self.times_s and ordered):
            raise CourseError("the trace is empty or not in order of time", "sort it by timestamp")

    def __str__(self) -> str:
        return f"a trace of {len(self.times_s)} requests"

    def times(self) -> Iterator[float]:
        """Yield the scheduled times in seconds from the start."""
        return iter(self.times_s)

    @classmethod
    def read(cls, path: str | Path, *, unit_s: float = 1.0) -> "Replay":
        """Read the ``timestamp`` of each line of a JSONL trace.

        Args:
            path: the trace; the first arrival becomes time 0.
            unit_s: seconds in one unit of ``timestamp`` (0.001 for Mooncake's milliseconds).

        Raises:
            CourseError: the file cannot be read, or a line has no ``timestamp``.
        """
        try:
            with Path(path).open(encoding="utf-8-sig") as lines:
                filled = filter(str.strip, lines)
                stamps = sorted(json.loads(line)["timestamp"] * unit_s for line in filled)
        except OSError as error:
            raise CourseError(f"{path} cannot be read: {error.strerror}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise CourseError(f"{path} is not a trace: {error!r}", "one object a line") from None
        return cls(times_s=tuple(stamp - stamps[0] for stamp in stamps))


Arrivals = ClosedLoop | Constant | Gamma | Replay


def above_zero(**values: float | None) -> None:
    """Refuse numbers that are not above 0; ``None`` is none.

    Raises:
        CourseError: one is 0, negative or not a number.
    """
    for name, value in values.items():
        if value is not None and not value > 0:
            raise CourseError(f"{name} is {value}", f"{name} must be above 0")
