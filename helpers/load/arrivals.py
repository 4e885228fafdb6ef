"""When requests are sent: a closed loop of users, or an open loop that waits for nobody."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, pairwise

from helpers.errors import CourseError


@dataclass(frozen=True, kw_only=True)
class ClosedLoop:
    """A fixed number of users; each waits for its answer, thinks, and asks again.

    They start a millisecond apart: all at once is a load that no real set of users makes.

    Args:
        users: how many, so at most that many requests are running.
        think_time_s: pause of a user between an answer and the next request.
    """

    users: int
    think_time_s: float = 0.0

    def __post_init__(self) -> None:
        if self.users != int(self.users) or self.users < 1 or not self.think_time_s >= 0:
            raise CourseError(f"nobody can be {self!r}", "whole users from 1, a time from 0 s")
        object.__setattr__(self, "users", int(self.users))  # also of NumPy's numbers

    def __str__(self) -> str:
        think = f", {self.think_time_s:g} s think time" if self.think_time_s else ""
        return f"{self.users} user{'s' if self.users > 1 else ''}{think}"


class OpenLoop:
    """Requests that are sent at set times, whatever the server does."""

    def times(self) -> Iterator[float]:
        """Yield the scheduled times in seconds from the start."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Constant(OpenLoop):
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
class Gamma(OpenLoop):
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
class Replay(OpenLoop):
    """Recorded arrival times: ``times_s``, in seconds from the start, ascending."""

    times_s: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "times_s", tuple(self.times_s))
        if not self.times_s or not all(a <= b for a, b in pairwise((0.0, *self.times_s))):
            raise CourseError("the trace is empty or not in order of time", "sort it by time")

    def __str__(self) -> str:
        return f"a trace of {len(self.times_s)} requests"

    def times(self) -> Iterator[float]:
        """Yield the scheduled times in seconds from the start."""
        return iter(self.times_s)


Arrivals = ClosedLoop | OpenLoop


def above_zero(**values: float | None) -> None:
    """Refuse numbers that are not above 0; ``None`` is none.

    Raises:
        CourseError: one is 0, negative or not a number.
    """
    for name, value in values.items():
        if value is not None and not value > 0:
            raise CourseError(f"{name} is {value}", f"{name} must be above 0")
