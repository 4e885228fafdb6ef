"""The customers of a door: a key for each of them, and what each may use."""

import hashlib
import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock
from pydantic import SecretStr

from helpers import files
from helpers.errors import CourseError, above_zero


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one customer may use; ``None`` is no limit.

    Args:
        in_flight: requests at the same time.
        requests_a_minute: on average; that many may also come at once.
        max_tokens: output tokens of one request, also where it asks for none or for more.
        tokens_a_day: input and output tokens in a day (UTC).
        tokens_a_month: the same in a calendar month.
        dollars_a_day: US dollars in a day, at the door's prices.
        dollars_a_month: the same in a calendar month.

    Raises:
        CourseError: a limit is not above 0, or not finite.
    """

    in_flight: int = 4
    requests_a_minute: float = 60
    max_tokens: int = 1024
    tokens_a_day: int | None = None
    tokens_a_month: int | None = None
    dollars_a_day: float | None = None
    dollars_a_month: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None or not name.endswith(("_a_day", "_a_month")):
                above_zero(**{name: value or 0})


class Customers:
    """The keys of a door's customers, each a file named by the key's SHA-256.

    The door reads the file at each request, so what changes here counts from the next one on. A
    key itself is stored nowhere: whoever loses it gets a new one.

    Args:
        folder: the door's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "keys"

    def issue(self, customer: str, limits: Limits | None = None) -> SecretStr:
        """Make the key of a new customer.

        Args:
            customer: name in bills and metrics: small letters, digits and ``-._``.
            limits: what they may use.

        Returns:
            The key, to be sent to them once; there is no other copy.

        Raises:
            CourseError: the name cannot be one, or has a key already.
        """
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,39}", customer):
            what = f"{customer!r} cannot be a customer's name"
            raise CourseError(what, "use up to 40 of a-z, 0-9, dot, dash and underscore")
        with self._alone():
            if any(self._of(customer)):
                raise CourseError(f"{customer} has a key", "rotate() replaces it, revoke() ends it")
            return self._make({"customer": customer, **asdict(limits or Limits())})

    def rotate(self, customer: str, overlap_s: float = 86_400) -> SecretStr:
        """Make a customer's next key; those of before go on for a while, with the same limits.

        Args:
            customer: their name.
            overlap_s: seconds for which the old keys still open the door.

        Raises:
            CourseError: there is no such customer.
        """
        ends = _iso(datetime.now(UTC) + timedelta(seconds=overlap_s))
        with self._alone():
            old = self._known(customer)
            for path, record in old:
                ended = record | {"until": min(record["until"] or ends, ends)}
                files.replace(path, json.dumps(ended))
            return self._make(old[-1][1])

    def revoke(self, customer: str) -> None:
        """End all keys of a customer: their next request is refused. Bills keep what they used.

        Raises:
            CourseError: there is no such customer.
        """
        with self._alone():
            for path, _ in self._known(customer):
                path.unlink()

    def limit(self, customer: str, limits: Limits) -> None:
        """Set new limits for a customer.

        Raises:
            CourseError: there is no such customer.
        """
        with self._alone():
            for path, record in self._known(customer):
                files.replace(path, json.dumps(record | asdict(limits)))

    def table(self) -> pd.DataFrame:
        """A row for each key that has not ended: customer, name of the key, limits."""
        now = _iso(datetime.now(UTC))
        rows = [one for _, one in self._all() if (one["until"] or now) >= now]
        return pd.DataFrame(rows, columns=["customer", "name", "made", "until", *asdict(Limits())])

    def _alone(self) -> FileLock:
        """Nobody else changes keys meanwhile: a revoked one would be written anew."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return FileLock(self.folder.parent / "keys.lock", mode=0o600)

    def _make(self, record: dict[str, Any]) -> SecretStr:
        key = f"sk-door-{secrets.token_urlsafe(32)}"
        digest = hashlib.sha256(key.encode()).hexdigest()
        made = {"name": digest[:8], "made": _iso(datetime.now(UTC)), "until": None}
        files.replace(self.folder / f"{digest}.json", json.dumps(record | made))
        return SecretStr(key)

    def _all(self) -> list[tuple[Path, dict[str, Any]]]:
        found = [(path, json.loads(path.read_text())) for path in self.folder.glob("*.json")]
        return sorted(found, key=lambda one: (one[1]["customer"], one[1]["made"]))

    def _of(self, customer: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        return (one for one in self._all() if one[1]["customer"] == customer)

    def _known(self, customer: str) -> list[tuple[Path, dict[str, Any]]]:
        if found := list(self._of(customer)):
            return found
        names = ", ".join(dict.fromkeys(record["customer"] for _, record in self._all()))
        raise CourseError(f"there is no customer {customer!r}", f"there are: {names or 'none yet'}")


def _iso(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
