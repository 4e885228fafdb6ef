"""One request that was made: its answer, how long a failure makes a user wait, and its record."""

from email.utils import formatdate, parsedate_to_datetime
from functools import cached_property

import msgspec

from helpers.load.client.reading import Answer, read
from helpers.load.client.transport import Exchange

BACK_OFF_S = 1.0  # pause of a closed-loop user after a failure without Retry-After
LONGEST_S = 60.0  # the longest that is waited because of one, as in OpenAI's client
_encode = msgspec.json.Encoder().encode


class Asked:
    """A request that was made; its answer is read when somebody wants to know.

    Args:
        index: number of its chat.
        user: number of its user, -1 in an open loop.
        turn: position in its chat.
        scheduled_s: when the schedule wanted it sent, from the start; ``None`` in a closed loop.
        exchange: what went over the wire.
    """

    def __init__(
        self, index: int, user: int, turn: int, scheduled_s: float | None, exchange: Exchange
    ) -> None:
        self.about = {"index": index, "user": user, "turn": turn}
        self.scheduled_s, self.exchange = scheduled_s, exchange

    @cached_property
    def answer(self) -> Answer:
        """The answer, read."""
        return read(self.exchange)

    @property
    def failed(self) -> bool:
        """Whether a user should pause before asking again.

        An error within a stream is found by reading it. One that took longer than the pause has
        slowed its user down as it is: it is left to be read when there is time.
        """
        exchange = self.exchange
        if exchange.cause or exchange.status != 200:
            return True
        return exchange.end - exchange.sent < BACK_OFF_S and bool(self.answer.cause)

    @property
    def pause_s(self) -> float:
        """How long a user waits after a failure."""
        asked = self.retry_after_s
        return BACK_OFF_S if asked is None else min(asked, LONGEST_S)

    @property
    def retry_after_s(self) -> float | None:
        """The seconds that ``Retry-After`` asks for, a number or a date (RFC 9110, 10.2.3)."""
        headers = self.exchange.headers
        value = headers.get("retry-after")
        if not value:
            return None
        if value.isascii() and value.replace(".", "", 1).isdigit() and len(value) < 20:
            return float(value)
        try:
            until = parsedate_to_datetime(value).timestamp()
            sent = parsedate_to_datetime(headers.get("date", formatdate())).timestamp()
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        return max(0.0, until - sent)

    def line(self, start: float, key: str) -> bytes:
        """Return its record as a line of a run's file.

        Args:
            start: the run's time 0 on ``perf_counter``.
            key: the API key, which some servers repeat when they refuse it; a file holds none.
        """
        exchange, answer = self.exchange, self.answer
        sent = exchange.sent
        return json_line(
            {
                "type": "request",
                **self.about,
                "scheduled_s": None if self.scheduled_s is None else round(self.scheduled_s, 6),
                "sent_s": round(sent - start, 6),
                "connect_s": round(exchange.connect_s, 6),
                "end_s": round(exchange.end - start, 6),
                "token_us": [int((time - sent) * 1e6) for time in answer.token_times],
                "prompt_tokens": answer.prompt_tokens,
                "cached_tokens": answer.cached_tokens,
                "output_tokens": answer.output_tokens,
                "status": exchange.status,
                "finish": answer.finish,
                "cause": answer.cause,
                "error": answer.error.replace(key, "***") if len(key) > 4 else answer.error,
                "retry_after_s": self.retry_after_s,
                "reconnects": exchange.reconnects,
            }
        )


def json_line(entry: dict) -> bytes:
    """Return an entry as a line."""
    return _encode(entry) + b"\n"
