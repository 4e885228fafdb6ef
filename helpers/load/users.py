"""One shard of a run, played: the users of a closed loop or the schedule of an open one.

Within the timed part it does as little as it can: bodies are built and connections opened before,
answers are read afterwards or in small slices between, and the garbage collector rests.
"""

import asyncio
import gc
import math
import re
import sys
from collections import deque
from collections.abc import Callable
from itertools import islice, takewhile
from time import perf_counter as clock
from time import process_time

from helpers.load import arrivals, workload
from helpers.load.asked import Asked, json_line
from helpers.load.client.eventloop import Alarm, LagProbe
from helpers.load.client.transport import Transport

# Servers that can be asked for answers of an exact length, by what they say of their models.
# The fields for it are sent to no other: hosted APIs refuse what they do not know.
EXACT = re.compile(rb'"owned_by": ?"(vllm|sglang|llamacpp)"')
TICK_S, SLICE_S = 0.005, 0.0005  # finished answers are read in slices, to disturb no clock read
PREPARE_S = 0.5  # requests are built ahead for so long at most
RAMP_S = 0.001  # between the starts of two users: all at once is a load that nobody can time
OPEN_CONNECTIONS = 64  # opened ahead for an open loop
GIVE_UP_S = 10.0  # the server is gone when nothing but dead connections came for so long
_DEAD = {"refused", "reset", "closed early", "unreachable"}


class Generator:
    """Plays one shard of a run.

    Args:
        spec: as ``helpers.load`` writes it.
        out: takes finished lines (bytes) without blocking; ``b""`` lets it write what waits.
    """

    def __init__(self, spec: dict, out: Callable[[bytes], object]) -> None:
        self.spec, self.out = spec, out
        self.work: workload.Workload = arrivals.from_spec(spec["workload"])
        self.arrivals: arrivals.Arrivals = arrivals.from_spec(spec["arrivals"])
        self.shard, self.shards = spec["shard"]
        self.left = len(range(self.shard, spec["requests"] or sys.maxsize, self.shards))
        self.duration = spec["duration_s"] or math.inf
        self.numbers = iter(range(self.shard, sys.maxsize, self.shards))
        self.prepared: deque[tuple] = deque()
        self.finished: deque[Asked] = deque()
        self.playing: asyncio.Task | None = None
        self.ended = self.unreachable = ""
        self.ahead = sys.maxsize  # so many requests are kept ready
        self.dead_since = 0.0
        self.lags: list[float] = []
        self.exact = False
        headers = {"Authorization": f"Bearer {spec['api_key']}", "User-Agent": "llm-serving-course"}
        self.transport = Transport(
            spec["base_url"], headers, spec["timeout_s"], spec.get("ca_file", "")
        )

    # Before the clock starts

    async def prepare(self) -> None:
        """Meet the server, build the first requests, open the connections."""
        exchange = await self.transport.fetch(self.transport.prepare("/models"))
        if exchange.cause:
            self.unreachable = exchange.error
            return
        self.exact = EXACT.search(exchange.body) is not None
        self._build_ahead(clock() + PREPARE_S)
        self.ahead = len(self.prepared)
        connections = OPEN_CONNECTIONS
        if isinstance(self.arrivals, arrivals.ClosedLoop):
            connections = len(range(self.shard, self.arrivals.users, self.shards))
        await self.transport.warm(min(self.left, connections))

    def _build_ahead(self, until: float) -> None:
        """Build requests until enough are ready: one that is built when due delays all others."""
        while len(self.prepared) < min(self.ahead, self.left) and clock() < until:
            self.prepared.append(self._build())

    def _build(self) -> tuple:
        number = next(self.numbers)
        chat = self.work.chat(number)
        message, cap = chat.turns[0]
        return number, chat, self._request(number, chat, [*chat.opening, message], cap)

    def _request(self, number: int, chat: workload.Chat, messages: list[dict], cap: int) -> bytes:
        body = workload.body(self.work, self.spec["model"], chat.tools, messages, cap, self.exact)
        # By its session a router keeps a chat on the server that has its history.
        return self.transport.prepare("/chat/completions", body, f"chat-{number}")

    # The run

    async def play(self, start: float) -> None:
        """Send the requests; ``start`` is the run's time 0 on ``perf_counter``."""
        self.start = start
        self.probe, self.alarm = LagProbe(self.lags), Alarm()
        gc.collect()
        gc.freeze()
        gc.disable()  # its pauses would be measured as the server's
        cpu, wall = process_time(), clock()
        self._tick()
        self.playing = asyncio.create_task(self._load())
        if self.ended:
            self.playing.cancel()
        await asyncio.wait([self.playing])
        cpu, wall = process_time() - cpu, clock() - wall
        self.ticking.cancel()
        self._tell()
        await self.transport.close()
        if not self.playing.cancelled():
            self.playing.result()
        lags = sorted(self.lags) or [0.0]
        end = {
            "type": "end",
            "shard": self.shard,
            "ended": self.ended or "complete",
            "wall_s": round(wall, 3),
            "cpu_s": round(cpu, 3),
            "lag_p99_ms": round(lags[int(len(lags) * 0.99)] * 1e3, 3),
            "exact_lengths": self.exact,
        }
        self.out(json_line(end))

    def stop(self, why: str = "interrupted") -> None:
        """End the run now; what is in flight is recorded as interrupted."""
        self.ended = self.ended or why
        if self.playing:
            self.playing.cancel()

    async def _load(self) -> None:
        """Make all requests: each user, or each scheduled chat, is a task of its own."""
        loop, mine = self.arrivals, (self.shard, None, self.shards)
        try:
            async with asyncio.TaskGroup() as group:
                if isinstance(loop, arrivals.ClosedLoop):
                    apart_s = max(RAMP_S, loop.spread_s / loop.users)
                    for user in islice(range(loop.users), *mine):
                        await self.alarm.until(self.start + user * apart_s)
                        group.create_task(self._user(user, loop.think_time_s))
                    return
                for at in takewhile(lambda at: at < self.duration, islice(loop.times(), *mine)):
                    await self.alarm.until(self.start + at)
                    if (item := self._take()) is None:
                        return
                    group.create_task(self._converse(item, at=at))
        except ExceptionGroup as broken:
            raise broken.exceptions[0] from None

    async def _user(self, user: int, think_s: float) -> None:
        """Ask, wait for the answer, think, and ask again."""
        while (item := self._take()) is not None:
            await self._converse(item, user, think_s)

    def _more(self) -> bool:
        return self.left > 0 and clock() - self.start < self.duration

    def _take(self) -> tuple | None:
        """Return the next chat with its first request, ``None`` at the end of the run."""
        if not self._more():
            return None
        return self.prepared.popleft() if self.prepared else self._build()

    async def _converse(
        self, item: tuple, user: int = -1, think_s: float = 0.0, at: float | None = None
    ) -> None:
        """Go through one chat; each turn carries the history of the ones before."""
        number, chat, request = item
        messages = [*chat.opening, chat.turns[0][0]]
        for turn in range(len(chat.turns)):
            asked = Asked(number, user, turn, at if turn == 0 else None)
            await self._ask(request, asked)
            if user >= 0:
                await self._rest(asked.pause_s(think_s))
            if turn == len(chat.turns) - 1 or asked.answer.cause or not self._more():
                return
            message, cap = chat.turns[turn + 1]
            messages += [asked.answer.message().as_dict(), message]
            request = self._request(number, chat, messages, cap)

    async def _ask(self, request: bytes, asked: Asked) -> None:
        self.left -= 1
        try:
            await self.transport.fetch(request, asked)
        finally:
            self.finished.append(asked)
        if asked.cause not in _DEAD:
            self.dead_since = 0.0
            return
        self.dead_since = self.dead_since or clock()
        if clock() - self.dead_since > GIVE_UP_S:
            self.stop("server gone")

    async def _rest(self, pause_s: float) -> None:
        """Pause, at the longest until nothing new is to be sent."""
        ends = min(clock() + pause_s, self.start + self.duration)
        # Once is not enough: uvloop's own clock is behind when it is busy, and it wakes us early.
        while pause_s and self._more() and clock() < ends:  # noqa: ASYNC110
            await asyncio.sleep(ends - clock())

    def _tick(self) -> None:
        self.probe.send()
        self._tell(until := clock() + SLICE_S)
        self._build_ahead(until)
        self.ticking = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tell(self, until: float = math.inf) -> None:
        """Read what has finished, and hand out its lines."""
        lines = []
        while self.finished and clock() < until:
            lines.append(self.finished.popleft().line(self.start, self.spec["api_key"]))
        self.out(b"".join(lines))
