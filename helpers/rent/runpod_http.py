"""HTTP to RunPod's API: one request with its retries, and its errors as sentences."""

import contextlib
import time
from collections.abc import Iterator

import requests

from helpers.errors import CourseError
from helpers.rent.market import NoAnswer, OfferGone

KEYS_URL = "https://console.runpod.io/user/settings"
BILLING_URL = "https://console.runpod.io/user/billing"
_ATTEMPTS = 4


class NotFound(CourseError):
    """HTTP 404."""


class Api:
    """RunPod's API, or a server that speaks it.

    Args:
        url: root of the API, without the version.
        api_key: sent as bearer token, never shown.
    """

    def __init__(self, url: str, api_key: str) -> None:
        self.url = url
        self._http = requests.Session()
        self._http.trust_env = False  # a ~/.netrc would replace our Authorization header
        self._http.headers["Authorization"] = f"Bearer {api_key}"

    def json(self, doing: str, method: str, path: str, body: dict | None = None, **options) -> dict:
        """The answer's JSON object; arguments as for :meth:`call`."""
        answer = self.call(doing, method, path, body, **options)
        with fitting(doing):
            found = answer.json()
            found.keys()
            return found

    def call(
        self,
        doing: str,
        method: str,
        path: str,
        body: dict | None = None,
        *,
        params: dict | None = None,
        again: bool | None = None,
        stream: bool = False,
    ) -> requests.Response:
        """One request: rate limits are waited out, errors become sentences.

        ``again`` repeats a request whose answer got lost; by default all but POST are.
        """
        again = method != "POST" if again is None else again
        for attempt in range(_ATTEMPTS):
            last = attempt == _ATTEMPTS - 1
            try:
                answer = self._http.request(
                    method, self.url + path, json=body, params=params, stream=stream,
                    timeout=(10, 3 if stream else 60),
                )  # fmt: skip
            except (requests.ConnectionError, requests.Timeout) as error:
                if again and not last:
                    time.sleep(0.5 * 2**attempt)
                    continue
                raise NoAnswer(
                    f"{doing}: RunPod did not answer ({type(error).__name__})",
                    "check the network and run the cell again; "
                    "`python -m helpers status` shows what runs",
                ) from None
            if answer.ok:
                return answer
            if last or not (answer.status_code == 429 or (again and answer.status_code >= 500)):
                raise _from_response(doing, answer) from None
            time.sleep(_retry_after(answer))
        raise AssertionError("the last attempt returns or raises")


@contextlib.contextmanager
def fitting(doing: str) -> Iterator[None]:
    """Tell an answer that does not have the published form."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise NoAnswer(
            f"{doing}: RunPod sent an answer that does not fit its API ({error!r})",
            "run the cell again; if it stays, RunPod changed its API: see docs.runpod.io",
        ) from None


def _retry_after(answer: requests.Response) -> float:
    with contextlib.suppress(ValueError):
        return min(float(answer.headers.get("Retry-After", 5.0)), 60.0)
    return 5.0


def _from_response(doing: str, answer: requests.Response) -> CourseError:
    """RFC 9457 problem, or whatever came instead, as a sentence with the next step."""
    try:
        problem = answer.json()
        words = [problem.get("detail") or problem.get("title") or "", *problem.get("errors", [])]
        message = "; ".join(str(word) for word in words if word)[:300]
    except (ValueError, AttributeError):
        message = answer.text[:200]
    status = answer.status_code
    if status == 401:
        return CourseError(
            f"{doing}: RunPod does not accept RUNPOD_API_KEY ({message})",
            f"create a key at {KEYS_URL} and put it into .env",
        )
    if status == 404:
        return NotFound(f"{doing}: {message}")
    if status == 402 or "balance" in message.lower():
        return CourseError(f"{doing}: {message}", f"top up at {BILLING_URL}")
    words = ("capacity", "no longer available", "no instances", "not available", "resources")
    if status == 400 and any(word in message.lower() for word in words):
        return OfferGone(f"{doing}: no such machine is left ({message})", "take the next offer")
    if status == 429:
        return CourseError(f"{doing}: too many requests", "wait a minute and run the cell again")
    # A gateway that gives up says nothing about what the service behind it did.
    kind = NoAnswer if status >= 500 else CourseError
    return kind(
        f"{doing}: HTTP {status}, {message}",
        "run the cell again; https://uptime.runpod.io tells whether the service has trouble",
    )
