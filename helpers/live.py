"""The line of progress under a cell while a run goes on."""

import re
import time
from collections import deque

from tqdm import tqdm

_OUTPUT = re.compile(rb'"output_tokens":(\d+)')
_FAILED = re.compile(rb'"cause":"(?!")')


class Progress:
    """Counts finished requests as their lines go by and shows them a few times a second.

    It lives in the caller's process, the load is made in another one: showing disturbs nothing.

    Args:
        label: name of the run.
        requests: how many there will be, if known.
        duration_s: how long it takes, if known.
        shown: whether to show anything.
    """

    def __init__(
        self, label: str, requests: int | None, duration_s: float | None, *, shown: bool
    ) -> None:
        self.done = self.failed = self.tokens = 0
        self.running: dict[object, int] = {}  # requests in flight, by generator
        self.requests, self.duration_s = requests, duration_s
        self.began = time.monotonic()
        self.past = deque([(self.began, 0)], maxlen=16)  # three seconds, for the present rate
        unit, total = ("req", requests) if requests else ("s", round(duration_s, 1))
        # Plain text, not a widget: what a notebook saves must render anywhere.
        self.bar = tqdm(
            total=total, unit=unit, desc=label, disable=not shown, leave=False, ncols=100
        )

    def count(self, line: bytes) -> None:
        """Take note of a record; any other line is passed over."""
        if not line.startswith(b'{"type":"request"'):
            return
        self.done += 1
        self.failed += bool(_FAILED.search(line))
        found = _OUTPUT.search(line)
        self.tokens += int(found[1]) if found else 0

    def show(self) -> None:
        """Update the line, if it is time."""
        now = time.monotonic()
        if self.bar.disable or now - self.past[-1][0] < 0.2:
            return
        self.past.append((now, self.tokens))
        (then, before), running = self.past[0], sum(self.running.values())
        rate = (self.tokens - before) / (now - then)
        failed = f", {self.failed} failed" if self.failed else ""
        self.bar.set_postfix_str(f"{rate:.0f} tokens/s, {running} running{failed}", refresh=False)
        self.bar.n = self.done if self.requests else round(min(now - self.began, self.duration_s))
        self.bar.refresh()

    def close(self) -> None:
        """Take the line away."""
        self.bar.close()
