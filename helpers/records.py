"""One record a request, and a run as a file of them.

Times are seconds from the start of the run, on the client's monotonic clock.

* **TTFT**, time to first token: from ``origin_s`` to the first piece of text.
* **ITL**, inter-token latency: each gap between two pieces of text of one answer.
* **TPOT**, time per output token: from the first to the last piece of text, over one less than
  the number of output tokens the server counted. Not of an answer with a tool call: a server
  sends nothing of it before the function's name is complete, and so hides the first tokens.
* **End to end**: from ``origin_s`` to the last byte of the answer.

``origin_s`` is the scheduled time in an open loop, so that neither a slow client nor a slow server
can hide waiting (coordinated omission); in a closed loop it is when the user asked.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import msgspec

from helpers.errors import CourseError

if TYPE_CHECKING:
    import pandas

FASTEST_US = 100  # from one token of an answer to the next


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One request.

    Args:
        index: number of its conversation.
        user: number of its user in a closed loop, else -1.
        turn: position in its conversation.
        scheduled_s: when the schedule wanted it sent; ``None`` in a closed loop.
        sent_s: when its bytes were handed to the kernel.
        connect_s: time spent before that on opening a connection (and on the stale one that it
            replaces); 0 on a kept-alive one.
        end_s: last byte of the answer, or when it failed.
        token_us: arrival of each piece of text, microseconds after ``sent_s``.
        prompt_tokens: the server's count, ``cached_tokens`` of them from its prefix cache.
        cached_tokens: see there.
        output_tokens: the server's count (without one: the pieces of text).
        status: HTTP status, 0 when there was no answer.
        finish: finish reason, e.g. ``length``.
        cause: empty for a success, else ``timeout``, ``http 429``, ``refused``, ``reset``,
            ``closed early``, ``malformed``, ``server error``, ``unreachable`` or ``interrupted``.
        error: the cause in full.
        retry_after_s: what the server asked to wait, from its ``Retry-After``.
        reconnects: 1 when a stale kept-alive connection was replaced.
    """

    index: int
    user: int = -1
    turn: int = 0
    scheduled_s: float | None = None
    sent_s: float
    connect_s: float = 0.0
    end_s: float
    token_us: tuple[int, ...] = ()
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    status: int = 0
    finish: str = ""
    cause: str = ""
    error: str = ""
    retry_after_s: float | None = None
    reconnects: int = 0

    @property
    def ok(self) -> bool:
        """The answer arrived whole."""
        return not self.cause

    @property
    def origin_s(self) -> float:
        """Where latencies count from; see the module."""
        return self.sent_s - self.connect_s if self.scheduled_s is None else self.scheduled_s

    @property
    def lag_s(self) -> float:
        """How late the client began, not counting the connection (0 without a schedule)."""
        return self.sent_s - self.connect_s - self.origin_s

    @property
    def ttft_s(self) -> float | None:
        """Time to first token."""
        return self.sent_s + self.token_us[0] / 1e6 - self.origin_s if self.token_us else None

    @property
    def at_once(self) -> bool:
        """Its pieces came together, faster than a model writes: something had held them back."""
        gaps = len(self.token_us) - 1
        return gaps > 0 and self.token_us[-1] - self.token_us[0] < gaps * FASTEST_US

    @property
    def itl_s(self) -> list[float]:
        """Gaps between the pieces of text; none where all came together."""
        return [] if self.at_once else [(b - a) / 1e6 for a, b in pairwise(self.token_us)]

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; ``None`` where it cannot be told."""
        few = self.output_tokens < 2 or len(self.token_us) < 2
        if few or self.at_once or self.finish == "tool_calls":
            return None
        return (self.token_us[-1] - self.token_us[0]) / 1e6 / (self.output_tokens - 1)

    @property
    def e2e_s(self) -> float:
        """End-to-end latency."""
        return self.end_s - self.origin_s


@dataclass
class Run:
    """A finished (or interrupted) run: its settings, a record a request, the server's view.

    Args:
        header: settings, machine, endpoint, time of day.
        records: one a request, in order of sending.
        samples: the server's ``/metrics`` during the run, each with its time ``t_s``.
        ends: what each load-generating process reported about itself at its end.
        path: the file.
        allow_partial: figures and answers may be made of it although it was interrupted.
    """

    header: dict
    records: list[Record]
    samples: list[dict] = field(default_factory=list)
    ends: list[dict] = field(default_factory=list)
    path: Path | None = None
    allow_partial: bool = False

    @classmethod
    def read(cls, path: str | Path, *, allow_partial: bool = False) -> "Run":
        """Read a run's file, also one cut short by a killed process.

        Args:
            path: the file.
            allow_partial: if the run was interrupted, take what there is for a result.

        Raises:
            CourseError: the file is missing or is no run.
        """
        path = Path(path)
        run = cls({}, [], path=path, allow_partial=allow_partial)
        try:
            lines = path.read_text(errors="replace").split("\n")
        except OSError as error:
            raise CourseError(f"{path} cannot be read: {error.strerror}") from None
        for number, line in enumerate(lines):
            try:
                run._add(json.loads(line) if line else {})
            except (ValueError, TypeError, LookupError, AttributeError):
                if number < len(lines) - 1:  # only the last line may be cut
                    hint = "the file was changed by hand or by two runs at once"
                    raise CourseError(f"{path}, line {number + 1} is damaged", hint) from None
        if not run.header:
            raise CourseError(f"{path} is not a run", "give a file that load.run wrote")
        run.records.sort(key=lambda record: record.sent_s)
        return run

    def _add(self, entry: dict) -> None:
        kind = entry.pop("type", None)
        if kind == "request":
            self.records.append(msgspec.convert(entry, Record))
        elif kind == "run":
            self.header = entry
        elif kind == "begin":
            self.header["began"] = entry["at"]
        elif kind == "others":
            self.header["others_cores"] = entry["cores"]
        elif kind in ("server", "end"):
            (self.samples if kind == "server" else self.ends).append(entry)

    @property
    def title(self) -> str:
        """What was measured on what."""
        return self.header["endpoint"]["title"]

    @property
    def label(self) -> str:
        """The run's name, by default its arrivals in words; of an interrupted one, how far."""
        ended, of = len(self.ok) + len(self.failed), self.header.get("requests")
        came = f"{ended} of {of} requests" if of else f"{ended} requests"
        why = "stopped" if self.stopped else "the server was gone"
        return self.header["label"] + f" ({why} after {came})" * self.interrupted

    @property
    def began(self) -> float:
        """The run's time 0 in seconds since 1970, as ``time.time()`` counts."""
        return self.header["began"]

    @property
    def users(self) -> int | None:
        """Users of a closed loop, ``None`` for an open one."""
        return self.header["arrivals"].get("users")

    @property
    def interrupted(self) -> bool:
        """The run did not come to its end: it was stopped, or the server was gone."""
        ended = [end["ended"] for end in self.ends]
        return len(ended) < self.header.get("processes", 1) or set(ended) != {"complete"}

    @property
    def stopped(self) -> bool:
        """Somebody stopped it; the server was there."""
        return self.interrupted and all(end["ended"] != "server gone" for end in self.ends)

    @property
    def lag_p99_ms(self) -> float:
        """The client's own error: 99 of 100 times in this run are late by less than this.

        The larger of two: how long bytes that had arrived waited to be stamped (sampled
        throughout by bytes the client sends itself), and how late scheduled requests were sent.
        """
        late = sorted(record.lag_s for record in self.records) or [0.0]
        lags = [end["lag_p99_ms"] for end in self.ends]
        return max([late[int(len(late) * 0.99)] * 1e3, *lags])

    @property
    def disturbed(self) -> bool:
        """Other programs slowed the rehearsal down, which computes on the same machine.

        So it is judged when they used half a core more than the rented machine leaves to them. A
        token then takes about twice as long, and evenly so: its times alone do not show it.
        """
        cores, _, kind = self.header.get("endpoint", {}).get("hardware", "").partition(" ")
        if kind != "CPU cores" or "others_cores" not in self.header:
            return False
        left = self.header["client"]["cpus"] - int(cores)
        return self.header["others_cores"] > left + 0.5

    @property
    def client_limited(self) -> bool:
        """The client was the limit: the server can do more, or better, than was measured.

        So it is judged when a generator used more than 90 % of its core, or when the client's
        error is above 5 ms and above a tenth of the median time to first token.
        """
        firsts = [record.ttft_s for record in self.ok if record.ttft_s is not None]
        error_s = self.lag_p99_ms / 1e3
        busy = any(end["cpu_s"] > 0.9 * end["wall_s"] for end in self.ends)
        return busy or error_s > max(0.005, 0.1 * median(firsts or [0.0]))

    @property
    def held_back(self) -> bool:
        """Most answers came in one piece: something, such as a proxy, holds the stream back."""
        several = [record for record in self.ok if len(record.token_us) > 1]
        return 2 * sum(record.at_once for record in several) > len(several)

    @cached_property
    def ok(self) -> list[Record]:
        """Records of the answers that arrived whole."""
        return [record for record in self.records if record.ok]

    @property
    def failed(self) -> list[Record]:
        """Records of the requests that failed; those that were interrupted are neither."""
        return [record for record in self.records if record.cause not in ("", "interrupted")]

    def frame(self) -> "pandas.DataFrame":
        """One row a request, one column a field or measure, units in the names."""
        import pandas  # the generator itself runs without it on a rented machine

        names = [name for name in Record.__slots__ if name != "token_us"]
        names[6:6] = ["origin_s", "lag_s", "ttft_s", "tpot_s", "e2e_s"]
        rows = [[getattr(record, name) for name in names] for record in self.records]
        return pandas.DataFrame(rows, columns=names)

    def __repr__(self) -> str:
        tokens = sum(record.output_tokens for record in self.records)
        said = f"{len(self.records)} requests, {len(self.failed)} failed, {tokens} output tokens, "
        said += "OTHER PROGRAMS SLOWED THIS MACHINE, " if self.disturbed else ""
        limit = "; THE CLIENT WAS THE LIMIT" if self.client_limited else ""
        if self.held_back:
            limit += "; THE STREAM IS HELD BACK and comes in one piece: TPOT and ITL are unknown"
        return f"Run({self.label}: {said}client error p99 {self.lag_p99_ms:.1f} ms{limit})"


def refuse_partial(*runs: Run) -> None:
    """Refuse interrupted runs: unasked, no figure or answer is made of them.

    Raises:
        CourseError: one was interrupted, and not read with ``allow_partial``.
    """
    for run in runs:
        if run.interrupted and not run.allow_partial:
            hint = f"measure again; to use it: load.Run.read({str(run.path)!r}, allow_partial=True)"
            raise CourseError(f"{run.label} is no result", hint)
