"""Calls of the Vast.ai SDK: rate limits waited out, errors as sentences."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import requests

from helpers.errors import CourseError
from helpers.rent.market import NoAnswer, OfferGone

KEYS_URL = "https://cloud.vast.ai/manage-keys/"
BILLING_URL = "https://cloud.vast.ai/billing/"
_ATTEMPTS = 4
T = TypeVar("T")


class NotFound(CourseError):
    """HTTP 404 of something that is not an offer."""


def call(doing: str, work: Callable[[], T]) -> T:
    """One SDK call and the reading of its answer: limits are waited out, errors are told."""
    for attempt in range(_ATTEMPTS):
        try:
            with told(doing):
                return work()
        except _RateLimited as limit:
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(limit.wait_s)


class _RateLimited(CourseError):
    """HTTP 429; ``wait_s`` says for how long."""

    wait_s = 5.0  # Vast's limits are 1 to 4.5 seconds a kind of call


@contextlib.contextmanager
def told(doing: str) -> Iterator[None]:
    """Turn what the SDK raises into a sentence with the next step; never show the request."""
    try:
        yield
    except requests.HTTPError as error:
        raise _from_response(doing, error.response) from None
    except (requests.ConnectionError, requests.Timeout) as error:
        raise NoAnswer(
            f"{doing}: Vast.ai did not answer ({type(error).__name__})",
            "check the network and run the cell again; `python -m helpers status` shows what runs",
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise NoAnswer(
            f"{doing}: Vast.ai sent an answer that does not fit its API ({error!r})",
            "run the cell again; if it stays, look for a newer version of vastai-sdk",
        ) from None


def _from_response(doing: str, response: requests.Response) -> CourseError:
    try:
        body = response.json()
    except ValueError:  # a rate limit, for one, comes as plain text
        body = {"msg": response.text[:200]}
    words = message(body)
    if "no_such_ask" in words:
        return OfferGone(f"{doing}: somebody else was faster", "take the next offer")
    if response.status_code == 401:
        return CourseError(
            f"{doing}: Vast.ai does not accept VAST_API_KEY ({words})",
            f"create a key at {KEYS_URL} and put it into .env",
        )
    if response.status_code == 404:
        return NotFound(f"{doing}: {words}")
    if response.status_code == 429:
        limit = _RateLimited(
            f"{doing}: too many requests ({words})", "wait a minute and run the cell again"
        )
        with contextlib.suppress(ValueError):
            limit.wait_s = float(response.headers.get("Retry-After", limit.wait_s))
        return limit
    if any(word in words for word in ("credit", "billing", "balance")):
        return CourseError(f"{doing}: {words}", f"top up at {BILLING_URL}")
    # A gateway that gives up says nothing about what the service behind it did.
    kind = NoAnswer if response.status_code >= 500 else CourseError
    return kind(
        f"{doing}: HTTP {response.status_code}, {words}",
        "run the cell again; https://status.vast.ai tells whether the service has trouble",
    )


def message(body) -> str:
    """What an answer says about itself, wherever it says it."""
    if not isinstance(body, dict):
        return str(body)[:200]
    words = (body.get(name) for name in ("error", "msg", "message", "detail"))
    return " ".join(str(word) for word in words if word)[:300] or "no reason given"
