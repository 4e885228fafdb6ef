"""Traffic of real services: published traces as they are, and traffic drawn to look like them.

Three collections are read in the form in which they are published, recognised by their columns:

* Azure, LLM inference traces 2023 and 2024 (github.com/Azure/AzurePublicDataset, CC-BY);
* Mooncake, FAST'25 traces (github.com/kvcache-ai/Mooncake);
* BurstGPT (github.com/HPMLL/BurstGPT, CC-BY), with or without the sessions' columns.
"""

import gzip
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from helpers.errors import CourseError, above_zero
from helpers.load.workload import Synthetic

# The columns of time, prompt and answer in tokens, and the seconds in a unit of the time.
FORMS = {
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"): 1.0,  # Azure; the time is a date
    ("timestamp", "input_length", "output_length"): 0.001,  # Mooncake
    ("Timestamp", "Request tokens", "Response tokens"): 1.0,  # BurstGPT
    ("timestamp",): 1.0,
}
AT = (0, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1)
# Of the Azure LLM inference trace 2023 (CC-BY; Patel et al., Splitwise, ISCA 2024), worked out
# 2026-11-25: tokens at the quantiles AT of prompts and of answers, and the coefficient of variation
# of the gaps between arrivals. The two ends are ours, so that the means come out as in the trace:
# 2,048 and 28 tokens (code), 1,155 and 211 (chat).
TRAFFIC = {
    "code": ((14, 75, 578, 1469, 2744, 5187, 7303, 7436, 7437),
             (5, 6, 9, 13, 24, 55, 90, 251, 500), 13.2),
    "chat": ((30, 181, 396, 1020, 1189, 2734, 4083, 4142, 4200),
             (10, 41, 85, 129, 395, 424, 451, 601, 900), 1.09),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Recorded arrival times, repeated; with the lengths of the requests, where they are known.

    Args:
        times_s: seconds from the start, ascending; several may be the same.
        input_tokens: of the prompt of each, or nothing.
        output_tokens: of the answer to each, or nothing.
        note: what its reader must know, e.g. that prompts were cut.
    """

    times_s: tuple[float, ...]
    input_tokens: tuple[int, ...] = ()
    output_tokens: tuple[int, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("times_s", "input_tokens", "output_tokens"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        ordered = all(0 <= a <= b < math.inf for a, b in pairwise((0.0, *self.times_s)))
        if not (self.times_s and ordered):
            raise CourseError("the trace is empty or not in order of time", "sort it by timestamp")

    def __str__(self) -> str:
        return f"a trace of {len(self.times_s)} requests" + f" ({self.note})" * bool(self.note)

    def times(self) -> Iterator[float]:
        """Yield the scheduled times in seconds from the start."""
        return iter(self.times_s)

    def workload(self, seed: int = 0) -> Synthetic:
        """What is asked by it: request for request a prompt and an answer of its lengths.

        Args:
            seed: of the words; another one for each run, or later ones find their prompts in the
                server's prefix cache.

        Raises:
            CourseError: it has no lengths.
        """
        asked, answered = self.input_tokens, self.output_tokens
        return Synthetic(input_tokens=asked, output_tokens=answered, seed=seed)

    @classmethod
    def read(
        cls,
        path: str | Path,
        *,
        speed: float = 1.0,
        start_s: float = 0.0,
        span_s: float = math.inf,
        unit_s: float | None = None,
    ) -> "Replay":
        """Read a published trace (see the module), or the ``timestamp`` of each line of a JSONL.

        Requests without an answer (failures, which BurstGPT keeps with 0 tokens) or without a
        prompt are left out; how many stands in the ``note``, and so in the run's label. A number of
        tokens that is missing or not whole is refused, with its line.

        Args:
            path: the trace, or a ``.gz`` of it; its first arrival is its time 0.
            speed: 2 plays it twice as fast.
            start_s: where to begin, in seconds of the trace; this becomes time 0.
            span_s: how much of it to play, in seconds of the trace; what comes at its very end
                is no longer in it.
            unit_s: seconds in one unit of the timestamps, by default as published (Mooncake's
                are milliseconds).

        Raises:
            CourseError: the file cannot be read or is no trace, or nothing is in that span.
        """
        above_zero(speed=speed, unit_s=unit_s, start_s=start_s or None)  # from 0 on
        table = _table(path, unit_s)
        table["at"] = (table["at"] - table["at"].min() - start_s).round(6)
        cut = table[table["at"].between(0, round(span_s, 6), inclusive="left")]
        cut = cut.sort_values("at", kind="stable")
        answered = cut[(cut.drop(columns="at") > 0).all(axis=1)]
        if answered.empty:
            what = f"{path} has {len(cut)} requests from {start_s:g} s for {span_s:g} s, 0 answered"
            raise CourseError(what, f"it ends after {table['at'].max() + start_s:.0f} s")
        failed = len(cut) - len(answered)
        return cls(
            times_s=tuple((answered["at"] / speed).round(6)),
            input_tokens=tuple(answered.get("input", ())),
            output_tokens=tuple(answered.get("output", ())),
            note=f"{failed} without a prompt or an answer left out" if failed else "",
        )

    def fitted(self, *, shorter: float = 1.0, max_input_tokens: int | None = None) -> "Replay":
        """Return it with shorter prompts and answers, for a smaller server; the times stay.

        Args:
            shorter: divides all lengths; none gets below 1.
            max_input_tokens: longer prompts are cut to this, and counted in the ``note``. A server
                refuses a prompt that does not fit into its context, together with its answer and
                the chat template.

        Raises:
            CourseError: an argument is not above 0.
        """
        above_zero(shorter=shorter, max_input_tokens=max_input_tokens)
        most = math.inf if max_input_tokens is None else max_input_tokens
        prompts = [max(1, round(length / shorter)) for length in self.input_tokens]
        answers = [max(1, round(length / shorter)) for length in self.output_tokens]
        cut = sum(length > most for length in prompts)
        said = f"{cut} of {len(prompts)} prompts cut to {most} tokens" if cut else ""
        return replace(
            self,
            input_tokens=tuple(int(min(length, most)) for length in prompts),
            output_tokens=tuple(answers),
            note=", ".join(filter(None, (self.note, said))),
        )


def traffic(
    kind: str, *, rate_per_s: float, span_s: float, burstiness: float | None = None, seed: int = 0
) -> Replay:
    """Draw traffic like that of a real service, without its file.

    Lengths follow the quantiles of the Azure LLM inference trace 2023 (prompt and answer
    independently, as they nearly are there). Gaps are gamma distributed and vary as much as in the
    trace, then stretched so that *exactly* ``rate_per_s * span_s`` requests (rounded) come in the
    span. Runs of the same rate, span and seed therefore ask for the same tokens in the same order,
    whatever their burstiness: only the times differ. Give their workloads different seeds, or the
    later ones find their prompts in the server's prefix cache. (As drawn, 1,000 gaps of the code
    trace's kind may last twice as long as another 1,000.)

    What this leaves out: the trace's own bursts last for seconds to minutes. Gamma gaps that vary
    as much as those of ``"code"`` put ten, and at times a hundred requests into the same instant,
    at however low a mean rate. What a server carries of such traffic, the file itself shows.

    Args:
        kind: ``"chat"`` (5.53 requests a second in the trace, nearly Poisson) or ``"code"``
            (2.57, long silences and then bursts).
        rate_per_s: mean rate.
        span_s: how long it lasts.
        burstiness: of the gaps as in ``Gamma``, by default as in the trace: 0.84 for chat, 0.0057
            for code, of which a short span shows no more than one or two bursts.
        seed: of lengths and gaps.

    Raises:
        CourseError: there is no traffic of that kind, or a number is not above 0.

    >>> print(traffic("code", rate_per_s=2, span_s=60).fitted(shorter=16))
    a trace of 120 requests (code, 2/s, burstiness 0.0057)
    """
    import numpy

    if kind not in TRAFFIC:
        raise CourseError(f"no traffic is called {kind!r}", f"known are {', '.join(TRAFFIC)}")
    *quantiles, variation = TRAFFIC[kind]
    shape = variation**-2 if burstiness is None else burstiness
    above_zero(rate_per_s=rate_per_s, span_s=span_s, burstiness=shape)
    above_zero(requests=(count := round(rate_per_s * span_s)))
    chance = numpy.random.default_rng(seed)
    prompts, answers = (
        numpy.exp(numpy.interp(chance.random(count), AT, numpy.log(tokens))).round().astype(int)
        for tokens in quantiles
    )
    ends = chance.gamma(shape, size=count + 1).cumsum()  # the last gap is that to the span's end
    return Replay(
        times_s=tuple((ends[:-1] / (ends[-1] or 1.0) * span_s).round(6).tolist()),
        input_tokens=tuple(prompts.tolist()),
        output_tokens=tuple(answers.tolist()),
        note=f"{kind}, {rate_per_s:.3g}/s, burstiness {shape:.2g}",
    )


def _table(path: str | Path, unit_s: float | None) -> Any:
    """Return a DataFrame: ``at`` in seconds and, where they are known, ``input`` and ``output``.

    Raises:
        CourseError: the file cannot be read, or is no trace.
    """
    import pandas  # the generator itself runs without it on a rented machine

    try:
        table = _lines(path)
        # Lengths under names that nobody knows are not read as times alone.
        lengths = any("token" in name or "length" in name for name in table)
        forms = FORMS if lengths else [("timestamp",)]
        form = max(forms, key=lambda form: sum(name.casefold() in table for name in form))
        lacking = ", ".join(name for name in form if name.casefold() not in table)
        if lacking or table.empty:
            raise ValueError(f"no {lacking or 'requests'} in its columns {', '.join(table)}")
        table = table[[name.casefold() for name in form]]
        table = table.set_axis(["at", "input", "output"][: len(form)], axis=1)
        if pandas.to_numeric(table["at"], errors="coerce").isna().all():
            dates = pandas.to_datetime(table["at"], format="ISO8601", utc=True, errors="coerce")
            table["at"] = (dates - dates.min()).dt.total_seconds()
        numbers = table.apply(pandas.to_numeric, errors="coerce")
        wrong = (numbers.drop(columns="at") % 1 != 0).any(axis=1) | numbers["at"].isna()
        if wrong.any():
            raise ValueError(f"line {wrong.idxmax()} lacks a time or a whole number of tokens")
        numbers["at"] *= unit_s or FORMS[form]
        return numbers.astype({name: int for name in numbers if name != "at"})
    except (OSError, EOFError, zlib.error) as error:
        raise CourseError(f"{path} cannot be read: {error.args[-1]}") from None
    except (TypeError, ValueError) as error:
        hint = f"its columns should be one of: {'; '.join(', '.join(form) for form in FORMS)}"
        raise CourseError(f"{path} is not a trace: {str(error)[:160]}", hint) from None


def _lines(path: str | Path) -> Any:
    """Return a DataFrame of a CSV's or JSONL's columns, in small letters, by line of the file."""
    import pandas

    packed = Path(path).suffix == ".gz"
    with (gzip.open if packed else open)(path, "rt", encoding="utf-8-sig") as file:
        starts = {number: line.strip()[:1] for number, line in enumerate(file, 1) if line.strip()}
        head = min(starts, default=1)
        file.seek(0)
        if starts.get(head) == "{":
            table = pandas.read_json(file, lines=True, dtype=False).set_axis([*starts])
        else:  # blank lines are read, too: else the others lose their numbers
            table = pandas.read_csv(file, header=head - 1, index_col=False, skip_blank_lines=False)
            table = table.set_axis(table.index + head + 1).dropna(how="all")
    return table.set_axis([str(name).strip().casefold() for name in table], axis=1)
