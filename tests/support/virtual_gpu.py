"""A GPU under vLLM in virtual time: continuous batching whose every number can be repeated.

A step costs ``a + b x sequences`` and its prompt tokens at a rate; so many sequences and so many
cached tokens fit at once, first come first served. What it plays becomes the records of a run.
"""

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass

from helpers.load import deciding
from helpers.records import Record, Run
from support.made_runs import closed_loop

SAMPLE_S = 0.5
CLIENT_S = 0.0005  # from the end of an answer to its user's next request


@dataclass(frozen=True)
class VirtualGPU:
    """Step cost in ms, prefill in tokens/s; ``cv`` is how much lengths vary (lognormal)."""

    a: float
    b: float
    prefill: float
    seqs: int = 512
    kv: int = 400_000
    chunk: int = 2048
    prompt: int = 200
    out: int = 128
    cv: float = 0.0

    def answer_s(self, users: int) -> float:
        """About how long an answer takes with so many users."""
        return (self.a + self.b * users) / 1e3 * self.out + self.prompt / self.prefill * users

    def lengths(self, chance: random.Random) -> tuple[int, int]:
        """Draw a prompt and an answer."""
        s2 = math.log(1 + self.cv**2)
        drawn = (n * chance.lognormvariate(-s2 / 2, s2**0.5) for n in (self.prompt, self.out))
        prompt, out = (max(1, round(n)) for n in drawn)
        return prompt, out

    def play(self, users: int, seconds: float, *, spread_s: float, seed: int = 0) -> Run:
        """A closed loop that is cut off after ``seconds``, as the load generator cuts it."""
        return _Played(self, users, seconds, spread_s, random.Random(seed)).run(users, spread_s)


class _Played:
    def __init__(self, gpu, users, seconds, spread_s, chance):
        self.gpu, self.chance, self.seconds = gpu, chance, seconds
        self.coming = [(user * spread_s / users, user) for user in range(users)]  # a heap
        self.waiting, self.reading = deque(), deque()  # [user, sent, prompt, out, prompt left]
        self.ending: list[tuple] = []  # (last step, number, user, sent, prompt, out, first step)
        self.ends: list[float] = []  # of the steps
        self.records: list[Record] = []
        self.samples: list[dict] = []  # as of /metrics
        self.used = self.numbers = 0
        self._steps()

    def _steps(self):
        now = 0.0
        while now < self.seconds:
            while self.coming and self.coming[0][0] <= now:
                at, user = heapq.heappop(self.coming)
                prompt, out = self.gpu.lengths(self.chance)
                self.waiting.append([user, at, prompt, out, prompt])
            if not (self.waiting or self.reading or self.ending):
                now = self.coming[0][0]
                continue
            now += self._step()
            self.ends.append(now)
            if now > SAMPLE_S * len(self.samples):
                running = len(self.reading) + len(self.ending)
                self.samples.append({"t_s": now, "running": running, "waiting": len(self.waiting)})
            while self.ending and self.ending[0][0] == len(self.ends) - 1:
                _, _, user, sent, prompt, out, first = heapq.heappop(self.ending)
                self.used -= prompt + out
                self._record(user, sent, prompt, first, "")
                heapq.heappush(self.coming, (now + CLIENT_S, user))
        for _, _, user, sent, prompt, _, first in self.ending:
            self._record(user, sent, prompt, first, "interrupted")
        for user, sent, prompt, *_ in (*self.reading, *self.waiting):
            self._record(user, sent, prompt, len(self.ends), "interrupted")

    def _step(self) -> float:
        gpu, used, budget = self.gpu, self.used, self.gpu.chunk
        while self.waiting and len(self.ending) + len(self.reading) < gpu.seqs:
            _, _, prompt, out, _ = self.waiting[0]
            if used + prompt + out > gpu.kv:
                break
            used += prompt + out
            self.used += prompt
            self.reading.append(self.waiting.popleft())
        gets = len(self.ending)
        while self.reading and budget:
            first = self.reading[0]
            part = min(first[4], budget)
            first[4] -= part
            budget -= part
            if not first[4]:
                user, sent, prompt, out, _ = self.reading.popleft()
                self.numbers += 1
                step = len(self.ends)
                last = step + out - 1
                heapq.heappush(self.ending, (last, self.numbers, user, sent, prompt, out, step))
                gets += 1
        self.used += gets
        return (gpu.a + gpu.b * gets) / 1e3 + (gpu.chunk - budget) / gpu.prefill

    def _record(self, user, sent, prompt, first, cause):
        times = self.ends[first:]
        self.records.append(
            Record(
                index=len(self.records), user=user, sent_s=sent, prompt_tokens=prompt,
                end_s=times[-1] if not cause else self.ends[-1], output_tokens=len(times),
                token_us=tuple(round((time - sent) * 1e6) for time in times),
                status=200, finish="length", cause=cause,
            )
        )  # fmt: skip

    def run(self, users, spread_s) -> Run:
        even = closed_loop()
        arrivals = {"kind": "ClosedLoop", "users": users, "think_time_s": 0, "spread_s": spread_s}
        self.records.sort(key=lambda record: record.sent_s)
        header = {**even.header, "label": f"{users} users", "arrivals": arrivals}
        return Run(header, self.records, samples=self.samples, ends=even.ends)


class VirtualTime:
    """Stands for the clock and for ``load.run`` in ``helpers.load.levels``; counts the levels.

    Args:
        gpu: the server.
        seed: of its lengths.
    """

    def __init__(self, gpu: VirtualGPU, seed: int = 0) -> None:
        self.gpu, self.seed, self.now, self.asked = gpu, seed, 1000.0, []

    def patch(self, monkeypatch, levels) -> "VirtualTime":
        """Take the places."""
        for name, value in (("run", self.run), ("monotonic", lambda: self.now)):
            monkeypatch.setattr(levels, name, value)
        monkeypatch.setattr(deciding, "Run", self)
        return self

    def read(self, path, **_) -> Run:
        """The run as its file has it so far."""
        return self.so_far

    async def run(self, endpoint, work, arrivals, *, duration_s=1.0, enough=None, **_) -> Run:
        """Play until the time is over or it is enough."""
        users, seed = arrivals.users, self.seed + len(self.asked)
        self.asked.append(arrivals)
        played, until, elapsed = None, 8.0, 0.0
        while enough and elapsed < duration_s:
            elapsed += 0.25
            if elapsed >= enough.at:
                if played is None or elapsed > until:
                    until = max(until, 2 * elapsed)
                    played = self.gpu.play(users, until, spread_s=arrivals.spread_s, seed=seed)
                records = [record for record in played.records if record.end_s < elapsed]
                whole = [record for record in records if record.ok]
                self.so_far = Run(played.header, whole, allow_partial=True)
                if enough(elapsed, None):
                    break
        elapsed = elapsed or 3 * self.gpu.answer_s(users)
        self.now += elapsed
        return self.gpu.play(users, elapsed, spread_s=arrivals.spread_s, seed=seed)
