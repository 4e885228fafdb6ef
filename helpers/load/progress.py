"""The line of progress under a cell while a run goes on."""

import time
from collections import deque

import msgspec

from helpers.progress import Progress

EVERY_S = 0.2


class RunProgress:
    """Counts finished requests as their lines go by and shows them a few times a second.

    It lives in the caller's process, the load is made in another one: showing disturbs nothing.

    Args:
        label: name of the run.
        requests: how many there will be, if known.
        shown: whether to show anything.
    """

    def __init__(self, label: str, requests: int | None, *, shown: bool) -> None:
        self.label, self.of = label, f" of {requests}" if requests else ""
        self.done = self.failed = self.tokens = 0
        self.running: dict[object, int] = {}  # requests in flight, by generator
        self.past = deque([(time.monotonic(), 0)], maxlen=16)  # three seconds, the present rate
        self.say = Progress(shown=shown)

    def count(self, line: bytes) -> None:
        """Take note of a record's line; any other line is passed over."""
        entry = msgspec.json.decode(line)
        if entry["type"] == "request":
            self.done += 1
            self.failed += bool(entry["cause"])
            self.tokens += entry["output_tokens"]

    def show(self) -> None:
        """Update the line, if it is time and the line can be updated."""
        now = time.monotonic()
        if not self.say.updates or now - self.past[-1][0] < EVERY_S:
            return
        self.past.append((now, self.tokens))
        (then, before), running = self.past[0], sum(self.running.values())
        rate = (self.tokens - before) / (now - then)
        self._tell(f"{rate:.0f} tokens/s, {running} running")

    def close(self) -> None:
        """Leave the last line, with what came of it."""
        self._tell(f"{self.tokens} output tokens")
        self.say.close()

    def _tell(self, what: str) -> None:
        failed = f", {self.failed} failed" if self.failed else ""
        self.say(f"{self.label}: {self.done}{self.of} requests, {what}{failed}")
