"""When requests are sent: a closed loop of users, or an open loop that waits for nobody."""

import json
import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path

from helpers.errors import CourseError


@dataclass(frozen=True, kw_only=True)
class ClosedLoop:
    """A fixed number of users; each waits for its answer, thinks, and asks again.

    Args:
        users: how many, so at most that many requests are running.
        think_time_s: pause of a user between an answer and the next request.
        ramp_s: over this time the users start, evenly spaced; ``None`` is 1 ms a user, because
            all at once is a load that no real set of users makes and a client cannot time.
    """

    users: int
    think_time_s: float = 0.0
    ramp_s: float | None = None

    def __post_init__(self) -> None:
        _positive(users=self.users)
        if self.users != int(self.users):
            raise CourseError(f"users is {self.users}", "a whole number of them")
        object.__setattr__(self, "users", int(self.users))  # also of NumPy's numbers
        if self.think_time_s < 0 or (self.ramp_s or 0) < 0:
            raise CourseError("a time is below 0", "think_time_s and ramp_s are 0 or more")

    def __str__(self) -> str:
        think = f", {self.think_time_s:g} s think time" if self.think_time_s else ""
        return f"{self.users} user{'s' if self.users > 1 else ''}{think}"

    @property
    def start_over_s(self) -> float:
        """Time over which the users start."""
        return self.users / 1000 if self.ramp_s is None else self.ramp_s


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Open loop: one request every ``every_s`` seconds, whatever the server does."""

    every_s: float

    def __post_init__(self) -> None:
        _positive(every_s=self.every_s)

    def __str__(self) -> str:
        return f"a request every {self.every_s:.3g} s"

    def times(self) -> Iterator[float]:
        """Yield the scheduled times in seconds from the start."""
        index = 0
        while True:
            yield index * self.every_s
            index += 1


@dataclass(frozen=True, kw_only=True)
class Gamma:
    """Open loop whose gaps are gamma distributed.

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
        _positive(rate_per_s=self.rate_per_s, burstiness=self.burstiness)

    def __str__(self) -> str:
        return f"{self.rate_per_s:.3g} requests/s (gamma, burstiness {self.burstiness:g})"

    def times(self) -> Iterator[float]:
        """Yield the scheduled times in seconds from the start."""
        chance, at = random.Random(self.seed), 0.0  # noqa: S311
        while True:
            at += chance.gammavariate(self.burstiness, 1 / (self.rate_per_s * self.burstiness))
            yield at


@dataclass(frozen=True, kw_only=True)
class Poisson(Gamma):
    """Open loop: independent customers, ``rate_per_s`` of them on average."""

    burstiness: float = field(default=1.0, init=False)

    def __str__(self) -> str:
        return f"{self.rate_per_s:.3g} requests/s (Poisson)"


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """Open loop whose rate grows evenly from ``start_per_s`` to ``end_per_s``, then stays."""

    start_per_s: float
    end_per_s: float
    over_s: float

    def __post_init__(self) -> None:
        _positive(end_per_s=self.end_per_s, over_s=self.over_s)
        if self.start_per_s < 0:
            raise CourseError(f"start_per_s is {self.start_per_s}", "a rate of 0 or more")

    def __str__(self) -> str:
        return f"{self.start_per_s:g} to {self.end_per_s:g} requests/s over {self.over_s:g} s"

    def times(self) -> Iterator[float]:
        """Yield the scheduled times: request k comes when the integral of the rate reaches k."""
        a, slope = self.start_per_s, (self.end_per_s - self.start_per_s) / self.over_s
        in_ramp = self.over_s * (a + self.end_per_s) / 2
        index = 0
        while True:
            if index > in_ramp:
                yield self.over_s + (index - in_ramp) / self.end_per_s
            elif slope:
                yield (math.sqrt(max(a * a + 2 * slope * index, 0.0)) - a) / slope
            else:
                yield index / a
            index += 1


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Open loop that repeats recorded arrival times.

    Args:
        times_s: seconds from the start, ascending.
        speed: 2 plays twice as fast.
    """

    times_s: tuple[float, ...]
    speed: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "times_s", tuple(self.times_s))
        _positive(speed=self.speed)
        times = self.times_s
        ordered = all(0 <= a <= b < math.inf for a, b in pairwise((0.0, *times)))
        if not (times and ordered):
            raise CourseError("the trace is empty or not in order of time", "sort it by timestamp")

    def __str__(self) -> str:
        speed = f" at {self.speed:g} times its speed" if self.speed != 1 else ""
        return f"a trace of {len(self.times_s)} requests{speed}"

    def times(self) -> Iterator[float]:
        """Yield the scheduled times in seconds from the start."""
        return (time / self.speed for time in self.times_s)

    @classmethod
    def read(cls, path: str | Path, *, unit_s: float = 1.0, speed: float = 1.0) -> "Replay":
        """Read the ``timestamp`` of each line of a JSONL trace.

        Args:
            path: the trace; the first arrival becomes time 0.
            unit_s: seconds in one unit of ``timestamp`` (0.001 for Mooncake's milliseconds).
            speed: 2 plays twice as fast.

        Raises:
            CourseError: the file cannot be read, or a line has no ``timestamp``.
        """
        try:
            with Path(path).open() as lines:
                filled = filter(str.strip, lines)
                stamps = sorted(json.loads(line)["timestamp"] * unit_s for line in filled)
        except OSError as error:
            raise CourseError(f"{path} cannot be read: {error.strerror}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise CourseError(
                f"{path} is not a trace: {error!r}", "one JSON object a line"
            ) from None
        return cls(times_s=tuple(stamp - stamps[0] for stamp in stamps), speed=speed)


Arrivals = ClosedLoop | Interval | Poisson | Gamma | Ramp | Replay


def to_spec(value: object) -> dict:
    """Return arrivals or a workload as plain JSON values."""
    return {"kind": type(value).__name__, **asdict(value)}


def from_spec(spec: dict) -> Arrivals:
    """Return the arrivals that ``to_spec`` wrote down."""
    kinds = {kind.__name__: kind for kind in (ClosedLoop, Interval, Poisson, Gamma, Ramp, Replay)}
    values = dict(spec)
    kind = kinds[values.pop("kind")]
    settable = {item.name for item in fields(kind) if item.init}
    return kind(**{name: value for name, value in values.items() if name in settable})


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise CourseError(f"{name} is {value}", f"{name} must be above 0")
