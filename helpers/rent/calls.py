"""Errors of a marketplace: each is told in a sentence, with what to do next."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import requests

from helpers.errors import CourseError
from helpers.progress import Progress
from helpers.rent.market import NoAnswer, NotFound, OfferGone

MISFITS = (LookupError, TypeError, ValueError, AttributeError, OverflowError)
PATIENCE_S = 60.0  # a call is given up after so many seconds, waits included
PAUSES_S = (0.5, 1.0, 2.0, 4.0)  # between attempts, where the service asks for no other
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Service:
    """A marketplace as its error messages name it: its key, and where to get help.

    ``taken`` maps an HTTP status to the words that mean: somebody else has rented the offer.
    """

    name: str
    key: str
    keys_url: str
    billing_url: str
    status_url: str
    taken: Mapping[int, tuple[str, ...]]

    @contextlib.contextmanager
    def told(self, doing: str, *, missing_ok: bool = False) -> Iterator[None]:
        """Decorate a function that sends a request with ``requests`` and reads the answer.

        Args:
            doing: what for, in words; errors begin with it.
            missing_ok: return None when the service knows no such thing.

        Raises:
            NoAnswer: when it did not answer, or not what its API promises.
            NotFound, OfferGone: when it knows no such thing, or no longer.
            CourseError: when it refused. No message holds the request, which carries the key.
        """
        try:
            yield
        except (requests.RequestException, *MISFITS) as error:
            trouble = self._error(doing, error)
            if not (missing_ok and isinstance(trouble, NotFound)):
                raise trouble from None

    def _error(self, doing: str, error: Exception) -> CourseError:
        if isinstance(error, requests.HTTPError):
            return self._refusal(doing, error.response)
        if isinstance(error, MISFITS):
            what = f"sent an answer that does not fit its API ({error!r})"
            hint = "run the cell again; if it stays, look for a newer version of the course"
        else:
            what = f"did not answer ({type(error).__name__})"
            hint = "check the network; `python -m helpers status` shows what is rented"
        return NoAnswer(f"{doing}: {self.name} {what}", hint)

    def _refusal(self, doing: str, answer: requests.Response) -> CourseError:
        try:
            words = reason(answer.json())
        except ValueError:  # a rate limit, for one, comes as plain text
            words = answer.text[:200]
        status, lower = answer.status_code, words.lower()
        kind, hint = CourseError, f"run the cell again; {self.status_url} tells of any trouble"
        if status >= 500:
            kind = NoAnswer  # a gateway that gives up does not know what its service did
        elif any(word in lower for word in self.taken.get(status, ())):
            words = f"no such machine is left, somebody else was faster ({words})"
            kind, hint = OfferGone, "take the next offer"
        elif status == 404:
            kind, hint = NotFound, "look it up again: it may be gone"
        elif status == 429:
            hint = "wait a minute and run the cell again"
            if _quota(answer):
                hint = "the day's quota is used up; it begins anew at midnight UTC"
        elif status == 401:
            words = f"{self.name} does not accept {self.key} ({words})"
            hint = f"create a key at {self.keys_url} and put it into .env"
        elif status == 402 or any(word in lower for word in ("credit", "billing", "balance")):
            hint = f"top up at {self.billing_url}"
        return kind(f"{doing}: HTTP {status}, {words}", hint)


VAST = Service(
    name="Vast.ai",
    key="VAST_API_KEY",
    keys_url="https://cloud.vast.ai/manage-keys/",
    billing_url="https://cloud.vast.ai/billing/",
    status_url="https://status.vast.ai",
    taken=dict.fromkeys((400, 404, 410), ("no_such_ask",)),
)
RUNPOD = Service(
    name="RunPod",
    key="RUNPOD_API_KEY",
    keys_url="https://console.runpod.io/user/settings",
    billing_url="https://console.runpod.io/user/billing",
    status_url="https://uptime.runpod.io",
    taken={400: ("capacity", "no longer available", "no instances", "not available", "resources")},
)


def patient(send: Callable[..., requests.Response]) -> Callable[..., requests.Response]:
    """Let a function that sends a request repeat it when the line or a gateway failed.

    It waits as the service asks, but never past :data:`PATIENCE_S`, and says so. What may rent is
    sent once: a request whose answer got lost may have done its work.
    """

    def sending(method: str, url: str, *words: Any, **options: Any) -> requests.Response:
        if "/asks/" in url or (method == "POST" and "/bundles/" not in url):
            return send(method, url, *words, **options)
        began, pauses = time.monotonic(), iter((*PAUSES_S, math.inf))
        while True:
            pause = next(pauses)
            try:
                answer = send(method, url, *words, **options)
            except (requests.ConnectionError, requests.Timeout):
                if time.monotonic() - began + pause > PATIENCE_S:
                    raise
            else:
                if answer.status_code not in (429, 502, 503, 504) or _quota(answer):
                    return answer
                asked = number(answer.headers.get("Retry-After"), pause)
                pause = asked if asked >= 0 and pause < math.inf else pause
                if time.monotonic() - began + pause > PATIENCE_S:
                    return answer
            if pause > 1:
                Progress()(f"the marketplace is busy: asked again in {pause:.0f} s")
            time.sleep(pause)

    return sending


def _quota(answer: requests.Response) -> bool:
    return answer.status_code == 429 and "quota" in answer.text.lower()


def readable(read: Callable[[Any], T], rows: Iterable[Any]) -> list[T]:
    """What can be read of some records: one odd row (a null, a missing field) hides no other."""
    found = []
    for row in rows:
        with contextlib.suppress(*MISFITS):
            found.append(read(row))
    return found


def number(value: Any, otherwise: float = 0.0) -> float:
    """A number as a service sends it; ``otherwise`` when it is none."""
    with contextlib.suppress(TypeError, ValueError):
        return float(value)
    return otherwise


def seconds(value: Any) -> float:
    """A time in seconds since 1970, in whatever form it comes; now when it is none."""
    with contextlib.suppress(*MISFITS):
        iso = str(value).partition(" m=")[0].replace(" UTC", "").replace(" +", "+")  # Go's form
        return datetime.fromisoformat(iso).timestamp()
    return number(value, time.time())


def reason(body: object) -> str:
    """What an answer says about itself, wherever it says it."""
    if not isinstance(body, dict):
        return str(body)[:300]
    errors = body.get("errors")
    words = [body.get(name) for name in ("error", "msg", "message", "title", "detail")]
    words += errors if isinstance(errors, list) else []
    return " ".join(dict.fromkeys(str(word) for word in words if word))[:300] or "no reason given"


def agreed(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer itself, unless it refuses: Vast.ai does so inside an HTTP 200, too."""
    if not answer.get("success"):
        raise CourseError(f"Vast.ai refused: {reason(answer)}", "change what it names, or wait")
    return answer
