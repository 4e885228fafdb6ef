"""One shard of a run, played: users or a schedule, each request handed to the transport.

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
from email.utils import formatdate, parsedate_to_datetime
from time import perf_counter as clock
from time import process_time, time

from helpers.load import arrivals, workload
from helpers.load.client import stream
from helpers.load.client.eventloop import LagProbe
from helpers.load.client.wire import Exchange, Interrupted, transport_for

# What makes an answer as long as asked, by server (`owned_by`). Never sent to one not named here:
# hosted APIs refuse fields that they do not know.
EXACT_LENGTHS = {
    "vllm": ("ignore_eos", "min_tokens"),
    "sglang": ("ignore_eos", "min_tokens"),
    "llamacpp": ("ignore_eos",),
}
TICK_S, SLICE_S = 0.005, 0.0005  # finished answers are read in slices, to disturb no clock read
PREPARED = 20_000  # request bodies built ahead at most
PREPARED_BYTES = 32 << 20  # likewise; what they are made of takes the same again
WARM_S = 0.5  # what opening the connections takes, before an agreed time
BACK_OFF_S = 1.0  # pause of a closed-loop user after a failure without Retry-After
LONGEST_S = 60.0  # the longest that is waited because of one, as in OpenAI's client
GIVE_UP_S = 10.0  # the server is gone when nothing but dead connections came for so long
_DEAD = {"refused", "reset", "closed early", "unreachable"}


class Generator:
    """Plays one shard of a run.

    Args:
        spec: as ``helpers.load`` writes it.
        out: takes finished lines (bytes) without blocking; ``b""`` lets it write what waits.
    """

    def __init__(self, spec: dict, out) -> None:
        self.spec, self.out = spec, out
        self.arrivals = arrivals.from_spec(spec["arrivals"])
        self.work = workload.from_spec(spec["workload"])
        self.shard, self.shards = spec["shard"]
        self.closed = isinstance(self.arrivals, arrivals.ClosedLoop)
        self.users = _share(self.arrivals.users, self.shard, self.shards) if self.closed else 0
        self.total = self.left = _share(spec["requests"], self.shard, self.shards)
        self.duration = spec["duration_s"] or float("inf")
        self.numbers = iter(range(self.shard, sys.maxsize, self.shards))
        self.prepared: deque = deque()
        self.built = 0  # bytes of bodies
        self.finished: deque = deque()
        self.tasks: set[asyncio.Task] = set()
        self.ended, self.broken = "", None
        self.dead_since: float | None = None
        self.lags: list[float] = []

    # Before the clock starts

    async def prepare(self) -> None:
        """Meet the server, build the first requests, open the connections."""
        spec = self.spec
        headers = {"Authorization": f"Bearer {spec['api_key']}", "User-Agent": "llm-serving-course"}
        kind = transport_for(spec["base_url"])
        self.transport = kind(spec["base_url"], headers, spec["timeout_s"])
        self.round_trips, self.exact, self.unreachable = [], (), ""
        probe = self.transport.prepare("/models")
        for _ in range(6):
            exchange = await self.transport.fetch(probe)
            if exchange.cause:
                self.unreachable = exchange.error
                break
            self.round_trips.append(exchange.end - exchange.sent)
            self.exact = next(map(EXACT_LENGTHS.get, _models(exchange) & EXACT_LENGTHS.keys()), ())
        ahead, until = self._ahead(), spec.get("start_at", math.inf) - WARM_S
        while len(self.prepared) < ahead and self.built < PREPARED_BYTES and time() < until:
            self.prepared.append(self._build(next(self.numbers)))
        if self.round_trips:
            await self.transport.warm(min(self.total, self.users if self.closed else 64))

    def _ahead(self) -> int:
        if self.closed:
            wanted = 4 * self.users if self.total == sys.maxsize else self.total
        else:
            wanted = sum(1 for _ in self._schedule(PREPARED))
        return min(wanted, PREPARED)

    def _build(self, number: int) -> tuple:
        talk = self.work.chat(number)
        message, cap = talk.turns[0]
        return number, talk, self._request(number, talk, [*talk.opening, message], cap)

    def _request(self, number: int, talk: workload.Chat, messages: list[dict], cap: int):
        model = self.spec["model"]
        body = workload.body(self.work, model, talk.tools, messages, cap, self.exact)
        self.built += len(body)
        # By its session a router keeps a conversation on the server that has its history.
        return self.transport.prepare(self.spec["route"], body, f"chat-{number}")

    def _schedule(self, limit: int = sys.maxsize):
        """Yield this shard's scheduled times."""
        mine = 0
        for number, at in enumerate(self.arrivals.times()):
            if at >= self.duration or mine >= min(limit, self.total):
                return
            if number % self.shards == self.shard:
                mine += 1
                yield at

    # The run

    async def play(self, start: float) -> None:
        """Send the requests; ``start`` is the run's time 0 on ``perf_counter``."""
        loop = asyncio.get_running_loop()
        self.start, self.stopped = start, asyncio.Event()
        if self.ended:  # stopped before the clock started
            self.stopped.set()
        self.probe = LagProbe(loop, self.lags)
        gc.collect()
        gc.freeze()
        gc.disable()  # its pauses would be measured as the server's
        self.cpu, self.wall = process_time(), clock()
        ticking = loop.call_later(TICK_S, self._tick)
        try:
            await self._until(0.0)
            self._spawn(self._closed_loop() if self.closed else self._open_loop())
            await self.stopped.wait()
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
        finally:
            ticking.cancel()
            self.ticking = False
            self.cpu, self.wall = process_time() - self.cpu, clock() - self.wall
            gc.enable()
            gc.unfreeze()
            self.probe.close()
        while self.finished:
            self.out(self._line(*self.finished.popleft()))
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
            "transport": type(self.transport).__name__,
            "loop": type(asyncio.get_running_loop()).__module__,
            "python": sys.version.split()[0],
            "exact_lengths": self.exact,
        }

    def _spawn(self, coroutine) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception():
            self.broken = task.exception()
            self.stop("broken")
        if not self.tasks:
            self.stopped.set()

    async def _until(self, at: float) -> None:
        while (wait := self.start + at - clock()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(wait)

    def _more(self) -> bool:
        return self.left > 0 and clock() - self.start < self.duration

    def _next(self) -> tuple | None:
        if not self._more():
            return None
        return self.prepared.popleft() if self.prepared else self._build(next(self.numbers))

    async def _closed_loop(self) -> None:
        gap = self.arrivals.start_over_s / self.arrivals.users
        for number in range(self.shard, self.arrivals.users, self.shards):
            await self._until(number * gap)
            self._spawn(self._user(number))

    async def _user(self, number: int) -> None:
        while (item := self._next()) is not None:
            await self._converse(item, number, None)

    async def _open_loop(self) -> None:
        for at in self._schedule():
            await self._until(at)
            if (item := self._next()) is None:
                break
            self._spawn(self._converse(item, -1, at))

    async def _converse(self, item: tuple, user: int, scheduled: float | None) -> None:
        """Go through one conversation; each turn carries the history of the ones before."""
        number, talk, request = item
        messages = [*talk.opening, talk.turns[0][0]]
        for turn in range(len(talk.turns)):
            last = turn == len(talk.turns) - 1
            exchange = await self._one(request, (number, user, turn, scheduled))
            if last and not self.closed:
                return  # nobody waits for what came of it
            failed = _failed(exchange)
            if self.closed:
                await self._rest(_pause(exchange) if failed else self.arrivals.think_time_s)
            if failed or last or not self._more():
                return
            message, cap = talk.turns[turn + 1]
            try:
                messages += [stream.message(exchange), message]
            except ValueError:  # malformed, and recorded as such
                return
            request, scheduled = self._request(number, talk, messages, cap), None

    async def _rest(self, seconds: float) -> None:
        """Let a user pause, at the longest until nothing new is to be sent."""
        seconds = min(seconds, self.start + self.duration - clock())
        if seconds > 0:  # a sleep of nothing would still cost a turn of the event loop
            await asyncio.sleep(seconds)

    async def _one(self, request, about: tuple) -> Exchange:
        self.left -= 1
        try:
            exchange = await self.transport.fetch(request)
        except Interrupted as stopped:
            self.finished.append((about, stopped.exchange))
            raise
        self.finished.append((about, exchange))
        if exchange.cause not in _DEAD:
            self.dead_since = None
        elif self.dead_since is None:
            self.dead_since = clock()
        elif clock() - self.dead_since > GIVE_UP_S:
            self.stop("server gone")
        return exchange

    # While the run goes on, in slices

    ticking, ticks = True, 0

    def _tick(self) -> None:
        if not self.ticking:
            return
        self.probe.send()
        lines, until = [], clock() + SLICE_S
        while self.finished and clock() < until:
            lines.append(self._line(*self.finished.popleft()))
        self.ticks += 1
        if self.ticks % 100 == 0:
            lines.append(json_line({"type": "running", "count": len(self.tasks)}))
        self.out(b"".join(lines))
        asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _line(self, about: tuple, exchange: Exchange) -> bytes:
        reply = _read(exchange)
        number, user, turn, scheduled = about
        sent = exchange.sent
        record = {
            "type": "request",
            "index": number,
            "user": user,
            "turn": turn,
            "scheduled_s": scheduled if scheduled is None else round(scheduled, 6),
            "sent_s": round(sent - self.start, 6),
            "connect_s": round(exchange.connect_s, 6),
            "end_s": round(exchange.end - self.start, 6),
            "token_us": [int((time - sent) * 1e6) for time in reply.token_times],
            "prompt_tokens": reply.prompt_tokens,
            "cached_tokens": reply.cached_tokens,
            "output_tokens": reply.output_tokens,
            "status": exchange.status,
            "finish": reply.finish,
            "cause": reply.cause,
            "error": self._without_key(reply.error),
            "retry_after_s": _retry_after(exchange),
            "reconnects": exchange.reconnects,
        }
        return json_line(record)

    def _without_key(self, text: str) -> str:
        """Some servers repeat the key they refuse; a run's file holds none."""
        key = self.spec["api_key"]
        return text.replace(key, "***") if len(key) > 4 else text


def _share(total: int | None, shard: int, shards: int) -> int:
    """Return a shard's part of ``total``; ``None`` is without limit."""
    return sys.maxsize if total is None else len(range(shard, total, shards))


def json_line(entry: dict) -> bytes:
    """Return an entry as a line."""
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _models(exchange: Exchange) -> set[str]:
    body = b"".join(payload for _, payload in exchange.pieces())
    try:
        return {str(model.get("owned_by")) for model in json.loads(body)["data"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        return set()


def _read(exchange: Exchange) -> stream.Reply:
    """Read an answer; whatever a server sends, it breaks its own record and not the run."""
    try:
        return stream.read(exchange)
    except Exception as error:
        return stream.Reply([], cause=exchange.cause or "malformed", error=repr(error))


def _failed(exchange: Exchange) -> bool:
    """Return whether it failed; an answer that ends as good ones do is left to be read later."""
    end = b"".join(exchange.reads[-4:])
    good = not exchange.cause and b'"completion_tokens"' in end and b'"error"' not in end
    good = good and (exchange.status == 200 or exchange.reads[0].startswith(b"HTTP/1.1 200"))
    return not good and bool(_read(exchange).cause)


def _pause(exchange: Exchange) -> float:
    """Return how long a user waits after a failure that was read, in seconds."""
    asked = _retry_after(exchange)
    return BACK_OFF_S if asked is None else min(asked, LONGEST_S)


def _retry_after(exchange: Exchange) -> float | None:
    """Return the seconds that ``Retry-After`` asks for, a number or a date (RFC 9110, 10.2.3)."""
    value = exchange.headers.get("retry-after")
    if not value:
        return None
    if value.isascii() and value.replace(".", "", 1).isdigit() and len(value) < 20:
        return float(value)
    try:
        until = parsedate_to_datetime(value).timestamp()
        sent = parsedate_to_datetime(exchange.headers.get("date", formatdate())).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return max(0.0, until - sent)
