"""What the rehearsal's market has on offer, from ``assets/rehearsal_offers.csv``."""

import csv

from helpers.settings import ASSETS


def read() -> dict[int, dict]:
    """The pretend market: numbers become numbers, every row is marked as what it is."""
    with (ASSETS / "rehearsal_offers.csv").open(newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return {o["id"]: o for o in ({k: _value(v) for k, v in row.items()} for row in rows)}


def _value(text: str) -> float | int | bool | str:
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
