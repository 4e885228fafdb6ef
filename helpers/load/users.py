"""One shard of a run, played: the users of a closed loop or the schedule of an open one.

Within the timed part it does as little as it can: bodies are built and connections opened before,
answers are read afterwards or in small slices between, and the garbage collector rests.
"""

import asyncio
import gc
import json
import math
import statistics
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from itertools import islice, takewhile
from time import perf_counter as clock
from time import process_time, time

from helpers.load import arrivals, workload
from helpers.load.asked import Asked, json_line
from helpers.load.client.eventloop import Alarm, LagProbe
from helpers.load.client.transport import Exchange, Transport

# What makes an answer as long as asked, by server (`owned_by`). Never sent to one not named here:
# hosted APIs refuse fields that they do not know.
EXACT_LENGTHS = {
    "vllm": ("ignore_eos", "min_tokens"),
    "sglang": ("ignore_eos", "min_tokens"),
    "llamacpp": ("ignore_eos",),
}
TICK_S, SLICE_S = 0.005, 0.0005  # finished answers are read in slices, to disturb no clock read
PREPARED, PREPARED_OPEN = 20_000, 2_000  # bodies built ahead at most; likewise without a number
PREPARED_BYTES = 32 << 20  # likewise; what they are made of takes the same again
WARM_S = 0.5  # what opening the connections takes, before an agreed time
GIVE_UP_S = 10.0  # the server is gone when nothing but dead connections came for so long
_DEAD = {"refused", "reset", "closed early", "unreachable"}


class Generator:
    """Plays one shard of a run: what the two kinds of load have in common.

    Args:
        spec: as ``helpers.load`` writes it.
        out: takes finished lines (bytes) without blocking; ``b""`` lets it write what waits.
    """

    connections: int  # opened ahead

    def __init__(self, spec: dict, out: Callable[[bytes], object]) -> None:
        self.spec, self.out = spec, out
        self.work = workload.from_spec(spec["workload"])
        self.shard, self.shards = spec["shard"]
        self.total = self.left = _share(spec["requests"], self.shard, self.shards)
        self.duration = spec["duration_s"] or math.inf
        self.numbers = iter(range(self.shard, sys.maxsize, self.shards))
        self.prepared: deque[tuple] = deque()
        self.built = 0  # bytes of bodies
        self.finished: deque[Asked] = deque()
        self.tasks: set[asyncio.Task] = set()
        self.stopped = asyncio.Event()
        self.ended = self.unreachable = ""
        self.broken: BaseException | None = None
        self.dead_since: float | None = None
        self.lags: list[float] = []
        self.round_trips: list[float] = []
        self.exact: tuple[str, ...] = ()
        headers = {"Authorization": f"Bearer {spec['api_key']}", "User-Agent": "llm-serving-course"}
        self.transport = Transport(spec["base_url"], headers, spec["timeout_s"])

    async def load(self) -> None:
        """Make the requests, once the run has begun."""
        raise NotImplementedError

    # Before the clock starts

    async def prepare(self) -> None:
        """Meet the server, build the first requests, open the connections."""
        probe = self.transport.prepare("/models")
        for _ in range(6):
            exchange = await self.transport.fetch(probe)
            if exchange.cause:
                self.unreachable = exchange.error
                return
            self.round_trips.append(exchange.end - exchange.sent)
            known = _owners(exchange) & EXACT_LENGTHS.keys()
            self.exact = next((EXACT_LENGTHS[owner] for owner in known), ())
        ahead = PREPARED_OPEN if self.total == sys.maxsize else min(self.total, PREPARED)
        until = self.spec.get("start_at", math.inf) - WARM_S
        while len(self.prepared) < ahead and self.built < PREPARED_BYTES and time() < until:
            self.prepared.append(self._build(next(self.numbers)))
        await self.transport.warm(min(self.total, self.connections))

    def _build(self, number: int) -> tuple:
        chat = self.work.chat(number)
        message, cap = chat.turns[0]
        return number, chat, self._request(number, chat, [*chat.opening, message], cap)

    def _request(self, number: int, chat: workload.Chat, messages: list[dict], cap: int) -> bytes:
        model = self.spec["model"]
        body = workload.body(self.work, model, chat.tools, messages, cap, self.exact)
        self.built += len(body)
        # By its session a router keeps a chat on the server that has its history.
        return self.transport.prepare(self.spec["route"], body, f"chat-{number}")

    # The run

    async def play(self, start: float) -> None:
        """Send the requests; ``start`` is the run's time 0 on ``perf_counter``."""
        self.start, loop = start, asyncio.get_running_loop()
        self.probe, self.alarm = LagProbe(self.lags), Alarm()
        gc.collect()
        gc.freeze()
        gc.disable()  # its pauses would be measured as the server's
        self.cpu, self.wall = process_time(), clock()
        self.ticking = loop.call_later(TICK_S, self._tick, 1)
        try:
            await self.alarm.until(start)
            self.spawn(self.load())
            await self.stopped.wait()
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
        finally:
            self.ticking.cancel()
            self.cpu, self.wall = process_time() - self.cpu, clock() - self.wall
            gc.enable()
            gc.unfreeze()
            self.probe.close()
            self.alarm.close()
        while self.finished:
            self.out(self._line(self.finished.popleft()))
        await self.transport.close()
        if self.broken:
            raise self.broken
        self.out(json_line({"type": "end", **self.report()}))

    def stop(self, why: str = "interrupted") -> None:
        """End the run now; what is in flight is recorded as interrupted."""
        self.ended = self.ended or why
        self.stopped.set()

    def report(self) -> dict:
        """Return what the client can say about itself."""
        lags = sorted(self.lags) or [0.0]
        return {
            "shard": self.shard,
            "ended": self.ended or "complete",
            "wall_s": round(self.wall, 3),
            "cpu_s": round(self.cpu, 3),
            "lag_p50_ms": round(statistics.median(lags) * 1e3, 3),
            "lag_p99_ms": round(lags[int(len(lags) * 0.99)] * 1e3, 3),
            "lag_max_ms": round(lags[-1] * 1e3, 3),
            "round_trip_ms": [round(trip * 1e3, 3) for trip in self.round_trips[1:]],
            "loop": type(asyncio.get_running_loop()).__module__,
            "exact_lengths": self.exact,
        }

    def spawn(self, work: Coroutine) -> None:
        """Have a user, or a scheduled request, go its way; the run ends with the last of them."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception():
            self.broken = task.exception()
            self.stop("broken")
        if not self.tasks:
            self.stopped.set()

    def more(self) -> bool:
        """Return whether the run goes on."""
        return self.left > 0 and clock() - self.start < self.duration

    def take(self) -> tuple | None:
        """Return the next chat with its first request, ``None`` at the end of the run."""
        if not self.more():
            return None
        return self.prepared.popleft() if self.prepared else self._build(next(self.numbers))

    async def converse(self, item: tuple, user: int = -1, at: float | None = None) -> None:
        """Go through one chat; each turn carries the history of the ones before."""
        number, chat, request = item
        messages = [*chat.opening, chat.turns[0][0]]
        for turn in range(len(chat.turns)):
            asked = await self._ask(request, number, user, turn, at if turn == 0 else None)
            await self.rest(asked)
            if turn == len(chat.turns) - 1 or asked.answer.cause or not self.more():
                return
            message, cap = chat.turns[turn + 1]
            messages += [asked.answer.message().as_dict(), message]
            request = self._request(number, chat, messages, cap)

    async def rest(self, asked: Asked) -> None:
        """Pause after an answer."""

    async def _ask(
        self, request: bytes, number: int, user: int, turn: int, at: float | None
    ) -> Asked:
        self.left -= 1
        asked = Asked(number, user, turn, at, exchange := Exchange())
        try:
            await self.transport.fetch(request, exchange)
        finally:
            self.finished.append(asked)
        if exchange.cause not in _DEAD:
            self.dead_since = None
        elif self.dead_since is None:
            self.dead_since = clock()
        elif clock() - self.dead_since > GIVE_UP_S:
            self.stop("server gone")
        return asked

    # While the run goes on, in slices

    def _tick(self, number: int) -> None:
        self.probe.send()
        lines, until = [], clock() + SLICE_S
        while self.finished and clock() < until:
            lines.append(self._line(self.finished.popleft()))
        if number % 100 == 0:
            lines.append(json_line({"type": "running", "count": len(self.tasks)}))
        self.out(b"".join(lines))
        loop = asyncio.get_running_loop()
        self.ticking = loop.call_later(TICK_S, self._tick, number + 1)

    def _line(self, asked: Asked) -> bytes:
        return asked.line(self.start, self.spec["api_key"])


class ClosedGenerator(Generator):
    """Users, each of whom waits for the answer, thinks, and asks again."""

    def __init__(self, spec: dict, loop: arrivals.ClosedLoop, out: Callable) -> None:
        super().__init__(spec, out)
        self.loop = loop
        self.users = range(self.shard, loop.users, self.shards)
        self.connections = len(self.users)

    async def load(self) -> None:
        """Start the users one after the other."""
        gap = self.loop.start_over_s / self.loop.users
        for number in self.users:
            await self.alarm.until(self.start + number * gap)
            self.spawn(self._user(number))

    async def _user(self, number: int) -> None:
        while (item := self.take()) is not None:
            await self.converse(item, number)

    async def rest(self, asked: Asked) -> None:
        """Think, or wait after a failure; at the longest until nothing new is to be sent."""
        pause = asked.pause_s if asked.failed else self.loop.think_time_s
        if pause and self.more():  # a sleep of nothing would still cost a turn of the event loop
            left = self.start + self.duration - clock()
            await asyncio.sleep(min(pause, left + 0.001))  # uvloop rounds to milliseconds


class OpenGenerator(Generator):
    """A schedule that waits for nobody."""

    connections = 64

    def __init__(self, spec: dict, loop: arrivals.OpenLoop, out: Callable) -> None:
        super().__init__(spec, out)
        self.loop = loop

    async def load(self) -> None:
        """Send each request when it is due: this shard's part of the schedule."""
        mine = islice(self.loop.times(), self.shard, None, self.shards)
        for at in takewhile(lambda at: at < self.duration, mine):
            await self.alarm.until(self.start + at)
            if (item := self.take()) is None:
                break
            self.spawn(self.converse(item, at=at))


def generator(spec: dict, out: Callable[[bytes], object]) -> Generator:
    """Return the generator that a spec asks for; arguments as of ``Generator``."""
    when = arrivals.from_spec(spec["arrivals"])
    if isinstance(when, arrivals.ClosedLoop):
        return ClosedGenerator(spec, when, out)
    return OpenGenerator(spec, when, out)


def _share(total: int | None, shard: int, shards: int) -> int:
    """Return a shard's part of ``total``; ``None`` is without limit."""
    return sys.maxsize if total is None else len(range(shard, total, shards))


def _owners(exchange: Exchange) -> set[str]:
    """Return who owns the server's models, by which it is known."""
    try:
        return {str(model.get("owned_by")) for model in json.loads(exchange.body)["data"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        return set()
