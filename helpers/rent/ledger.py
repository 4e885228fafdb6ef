"""What the course has rented and spent, in a file, so that a budget outlives every kernel."""

import json
import time
from collections.abc import Iterable
from typing import Any

from filelock import FileLock

from helpers import files
from helpers.errors import CourseError
from helpers.rent.market import Instance
from helpers.settings import Settings


class Ledger:
    """The rentals of one provider, by their labels (once by their ids).

    A rental is written down before it is asked for, so that none can be rented and not counted.

    Args:
        settings: ``rehearsal_home`` is where the file is kept.
        provider: the provider's name.
    """

    def __init__(self, settings: Settings, provider: str) -> None:
        self.file = settings.rehearsal_home / f"rentals-{provider}.json"

    def read(self) -> dict[str, dict[str, Any]]:
        """All rentals: ``usd_per_hour``, ``began`` and ``ended`` (None while it may run).

        Raises:
            CourseError: when the file is damaged.
        """
        try:
            return json.loads(self.file.read_text()) if self.file.exists() else {}
        except ValueError:
            what = f"{self.file} is damaged: what was rented and spent is not known"
            raise CourseError(what, "look at your bill, then delete the file") from None

    def note(self, label: str, **facts: float | None) -> None:
        """Add facts to a rental."""
        self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(self.file.with_suffix(".lock")):  # several notebooks may note at once
            rentals = self.read()
            rentals.setdefault(label, {"ended": None}).update(facts)
            files.replace(self.file, json.dumps(rentals, indent=1))

    def compare(self, instances: Iterable[Instance]) -> None:
        """What the provider no longer knows has ended, now at the latest; what it knows has not.

        Args:
            instances: all that is rented at the provider.
        """
        present = {name for instance in instances for name in (instance.id, instance.label)}
        for label, rental in self.read().items():
            gone = label not in present
            if gone == (rental["ended"] is None):
                self.note(label, ended=time.time() if gone else None)

    def open(self) -> bool:
        """May something still be rented?"""
        return any(rental["ended"] is None for rental in self.read().values())

    def spent_usd(self) -> float:
        """Dollars, at most: hours of existence times the running price."""
        return sum(
            ((r["ended"] or time.time()) - r["began"]) / 3600 * r["usd_per_hour"]
            for r in self.read().values()
        )
