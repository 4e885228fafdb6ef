"""One request that was made: its answer, how long its user pauses after it, and its record."""

import re
from functools import cached_property

import msgspec

from helpers.endpoint import hide_key
from helpers.load.client.reading import Answer, read
from helpers.load.client.transport import Exchange

BACK_OFF_S = 1.0  # pause of a closed-loop user after a failure without Retry-After
LONGEST_S = 60.0  # the longest that is waited because of one, as in OpenAI's client
_READ = "prompt_tokens", "cached_tokens", "output_tokens", "finish", "cause"  # go into the record
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


class Asked(Exchange):
    """A request and its exchange; its answer is read when somebody wants to know.

    Args:
        index: number of its chat.
        user: number of its user, -1 in an open loop.
        turn: position in its chat.
        scheduled_s: when the schedule wanted it sent, from the start; ``None`` in a closed loop.
    """

    def __init__(self, index: int, user: int, turn: int, scheduled_s: float | None) -> None:
        super().__init__()
        self.about = {"index": index, "user": user, "turn": turn, "scheduled_s": scheduled_s}

    @cached_property
    def answer(self) -> Answer:
        """The answer, read."""
        return read(self)

    @property
    def retry_after_s(self) -> float | None:
        """The seconds that the server asks to wait in ``Retry-After``."""
        value = self.headers.get("retry-after")
        return float(value) if value and _SECONDS.fullmatch(value) else None

    def pause_s(self, think_s: float) -> float:
        """Return how long its user pauses: to think, or longer after a failure.

        An error within a stream is found by reading it. One that took longer than the pause has
        slowed its user down as it is: it is left to be read when there is time.
        """
        quick = self.end - self.sent < BACK_OFF_S
        failed = self.cause or self.status != 200 or (quick and self.answer.cause)
        if not failed:
            return think_s
        asked = self.retry_after_s
        return BACK_OFF_S if asked is None else min(asked, LONGEST_S)

    def line(self, start: float, key: str) -> bytes:
        """Return its record as a line of a run's file.

        Args:
            start: the run's time 0 on ``perf_counter``.
            key: the API key, which some servers repeat when they refuse it; a file holds none.
        """
        answer, sent = self.answer, self.sent
        record = {
            "type": "request",
            **self.about,
            "sent_s": round(sent - start, 6),
            "connect_s": round(self.connect_s, 6),
            "end_s": round(self.end - start, 6),
            "token_us": [int((time - sent) * 1e6) for time in answer.token_times],
            **{name: getattr(answer, name) for name in _READ},
            "status": self.status,
            "error": hide_key(answer.error, key),
            "retry_after_s": self.retry_after_s,
            "reconnects": self.reconnects,
        }
        return json_line(record)


def json_line(entry: dict) -> bytes:
    """Return an entry as a line."""
    return msgspec.json.encode(entry) + b"\n"
