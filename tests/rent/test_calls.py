"""One set of rules for both marketplaces: what is repeated, and what each error says."""

import json
import time

import pytest
import requests

from helpers.errors import CourseError
from helpers.rent.calls import ATTEMPTS, RUNPOD, VAST, agreed
from helpers.rent.market import NoAnswer, NotFound, OfferGone

SERVICES = pytest.mark.parametrize("service", [VAST, RUNPOD], ids=lambda service: service.name)


def refused(status: int, body: object = "", **headers: str) -> requests.HTTPError:
    """What ``raise_for_status`` raises for such an answer."""
    answer = requests.Response()
    answer.status_code = status
    answer._content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    answer.headers.update(headers)
    return requests.HTTPError("https://host/?key=secret", response=answer)


class Line:
    """Raises what it is told, one after the other, then answers; counts the calls."""

    def __init__(self, *troubles: Exception) -> None:
        self.troubles, self.calls = list(troubles), 0

    def __call__(self) -> str:
        self.calls += 1
        if self.troubles:
            raise self.troubles.pop(0)
        return "answer"


@pytest.fixture
def waited(monkeypatch):
    """The pauses that were made, in seconds; none is waited for."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


@SERVICES
def test_what_passes_is_waited_out(service, waited):
    """Rate limits as long as they ask, at most a minute; gateways and cut lines a moment."""
    line = Line(
        refused(429, **{"Retry-After": "0.5"}),
        refused(503, **{"Retry-After": "3600"}),
        refused(429, "too frequent", **{"Retry-After": "soon"}),
        requests.ConnectionError("cut"),
    )
    assert service.told("asking")(line)() == "answer"
    assert waited == [0.5, 60, 5, 1]


@SERVICES
@pytest.mark.parametrize("again", [True, False])
def test_what_costs_money_is_asked_for_once(service, waited, again):
    """A lost answer may be a rental: it is for the caller to look, not for us to repeat."""
    line = Line(*[requests.Timeout("slow")] * 9)
    with pytest.raises(NoAnswer, match="did not answer"):
        service.told("renting", again=again)(line)()
    assert line.calls == (ATTEMPTS if again else 1)


@SERVICES
@pytest.mark.parametrize(
    ("trouble", "kind", "told"),
    [
        (refused(401, {"msg": "no"}), CourseError, "does not accept {key} (no)"),
        (refused(401, {"msg": "no"}), CourseError, "create a key at {keys_url}"),
        (refused(402, {"title": "Payment", "detail": "low balance"}), CourseError, "{billing_url}"),
        (refused(404, {"title": "T", "detail": "no pod 5"}), NotFound, "T no pod 5"),
        (refused(422, {"detail": "d", "errors": ["disk: small"]}), CourseError, "disk: small"),
        (refused(429, "plain"), CourseError, "too many requests"),
        (refused(500, "credit is <b>fine</b>"), NoAnswer, "HTTP 500, credit is"),
        (refused(418, {}), CourseError, "{status_url}"),
        (KeyError("credit"), NoAnswer, "does not fit its API (KeyError('credit'))"),
        (requests.JSONDecodeError("m", "<html>", 0), NoAnswer, "does not fit its API"),
    ],
)
def test_each_error_is_a_sentence_with_the_next_step(service, waited, trouble, kind, told):
    """Nothing of the request is in it: the request carries the key."""
    with pytest.raises(kind) as caught:
        service.told("asking", again=False)(Line(trouble))()
    assert told.format(**vars(service)) in str(caught.value)
    assert caught.value.what.startswith("asking: ") and caught.value.hint
    assert "secret" not in str(caught.value) and caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("service", "status", "words"),
    [
        (VAST, 404, "error 404/3603: no_such_ask Instance type by id 5 is not available."),
        (VAST, 400, "no_such_ask"),
        (RUNPOD, 400, "There are no instances currently available with that GPU."),
    ],
)
def test_a_taken_offer_has_an_error_of_its_own(service, status, words):
    """So that the next one can be tried."""
    with pytest.raises(OfferGone, match="somebody else was faster"):
        service.told("renting", again=False)(Line(refused(status, {"msg": words})))()


def test_what_is_not_there_may_be_none():
    """Asked for when somebody looks whether it is gone; other errors stay errors."""
    assert VAST.told("asking", missing_ok=True)(Line(refused(404)))() is None
    for odd in (refused(403), refused(400, "not available"), refused(500), KeyError("id")):
        with pytest.raises(CourseError):
            RUNPOD.told("asking", missing_ok=True, again=False)(Line(odd))()


def test_a_refusal_inside_a_success_is_an_error():
    """Vast.ai says ``success: false`` under HTTP 200."""
    assert agreed({"success": True, "id": 1})["id"] == 1
    with pytest.raises(CourseError, match="refused: spend_rate_limit new account"):
        agreed({"success": False, "error": "spend_rate_limit", "msg": "new account"})
