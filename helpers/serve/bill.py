"""What the customers of a door have used and owe: its ledger, read."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from helpers.serve.customers import Customers

USED = ["input", "cached", "output", "usd"]


@dataclass(frozen=True, kw_only=True)
class Price:
    """US dollars per million tokens.

    Args:
        input: of prompts.
        cached: of the part of a prompt that the server had in its prefix cache.
        output: of answers.
    """

    input: float = 0.0
    cached: float = 0.0
    output: float = 0.0


def requests(folder: Path, month: str = "") -> pd.DataFrame:
    """Every request of a month.

    A request that was running when the door was killed is in the ledger with what it had used
    until then, half a second before at most; one that is running now, with what it has used so far.

    Args:
        folder: the door's folder.
        month: such as ``"2026-11"`` (UTC); by default this one. A request belongs to the month in
            which it began.

    Returns:
        Columns ``customer``, ``at`` (when it began), ``route``, ``key`` (the first letters of its
        hash), ``status``, ``complete``, ``input`` tokens, of which ``cached``, ``output`` tokens,
        ``usd``, ``seconds`` and ``ttft`` (seconds). While it runs, the status is missing.
    """
    found: dict[str, dict] = {}
    ledger = folder / "usage" / f"{month or f'{datetime.now(UTC):%Y-%m}'}.jsonl"
    for line in _lines(ledger):
        begun = found.setdefault(line["id"], {})
        # An end is booked once: the door may have been killed between writing it and knowing so.
        if "complete" not in begun:
            begun |= {name: value for name, value in line.items() if name not in ("event", "id")}
            begun["at"] = min(begun["at"], line["at"])
    for one in _state(folder)["running"]:
        row = found.get(one["id"])
        if row is not None and "complete" not in row:
            row |= {name: one[name] for name in USED}
    columns = ["customer", "at", "route", "key", "status", "complete", *USED, "seconds", "ttft"]
    table = pd.DataFrame(found.values(), columns=columns)
    table[USED] = table[USED].fillna(0)
    return table.assign(at=pd.to_datetime(table["at"], utc=True))


def bill(folder: Path, month: str = "") -> pd.DataFrame:
    """What each customer used in a month, and owes.

    Args:
        folder: the door's folder.
        month: such as ``"2026-11"`` (UTC); by default this one.

    Returns:
        A row for each customer: ``requests``, ``cut`` (those whose answer did not reach its end),
        ``input`` tokens, of which ``cached``, ``output`` tokens, and ``usd``.
    """
    table = requests(folder, month)
    table["cut"] = table["complete"] == False  # noqa: E712  what runs is neither
    rows = table.groupby("customer").agg(
        requests=("at", "size"), cut=("cut", "sum"), **{name: (name, "sum") for name in USED}
    )
    return rows.astype({name: int for name in USED[:3]})


def status(folder: Path) -> pd.DataFrame:
    """What is being used, by whom, since when, and at what cost.

    Args:
        folder: the door's folder.

    Returns:
        A row for each customer that has a key or used one this month: ``keys``, ``running``
        requests, the ``last`` request, and of today and this month the tokens and dollars.
    """
    table = requests(folder)
    table["tokens"] = table["input"] + table["output"]
    today = table[table["at"] >= pd.Timestamp.now(tz="UTC").normalize()]
    keys = Customers(folder).table()
    by = {
        "keys": keys.groupby("customer").size(),
        "since": pd.to_datetime(keys.groupby("customer")["made"].min(), utc=True).dt.floor("s"),
        "running": table[table["status"].isna()].groupby("customer").size(),
        "last": table.groupby("customer")["at"].max().dt.floor("s"),
        "requests today": today.groupby("customer").size(),
        "tokens today": today.groupby("customer")["tokens"].sum(),
        "usd today": today.groupby("customer")["usd"].sum(),
        "tokens this month": table.groupby("customer")["tokens"].sum(),
        "usd this month": table.groupby("customer")["usd"].sum(),
    }
    rows = pd.DataFrame(by).rename_axis("customer")
    times, money = ["since", "last"], ["usd today", "usd this month"]
    whole = [name for name in rows if name not in (*times, *money)]
    return rows.fillna(dict.fromkeys((*whole, *money), 0)).astype(dict.fromkeys(whole, int))


def _state(folder: Path) -> dict:
    path = folder / "state.json"
    return json.loads(path.read_text()) if path.exists() else {"running": []}


def _lines(ledger: Path) -> Iterator[dict]:
    """What a ledger holds; a line that a power failure cut in two is left out."""
    if ledger.exists():
        for line in ledger.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError):
                yield json.loads(line)
