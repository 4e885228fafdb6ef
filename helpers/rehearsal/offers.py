"""What the rehearsal's market has on offer, from ``assets/rehearsal_offers.csv``."""

import csv
import json
import os
from typing import Any

from helpers.settings import ASSETS


def read() -> dict[int, dict[str, Any]]:
    """The pretend market's rows by their ids; none brings more cores than this computer has."""
    with (ASSETS / "rehearsal_offers.csv").open(newline="") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    offers = [{name: _value(text) for name, text in row.items()} for row in rows]
    for offer in offers:
        offer["cpu_cores_effective"] = min(offer["cpu_cores_effective"], len(cores()))
    return {offer["id"]: offer for offer in offers}


def cores() -> list[int]:
    """Numbers of the CPU cores that the rehearsal may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
