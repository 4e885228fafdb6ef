"""RunPod's provider on a line that misbehaves: lost answers, limits, refusals, odd bodies."""

import json
import time

import pytest
import requests

from helpers.errors import CourseError
from helpers.rent import guard
from helpers.rent import market as providers
from helpers.rent.market import LABEL_PREFIX, OfferFilter, OfferGone
from helpers.serve.spec import ServingSpec


@pytest.fixture
def market(settings):
    """The rehearsal behind RunPod's API."""
    market = providers.connect(settings.model_copy(update={"provider": "rehearsal-runpod"}))
    yield market
    for instance in market.instances():
        if instance.label.startswith(f"{LABEL_PREFIX}line"):
            guard.destroy(market, instance.id)


@pytest.fixture
def line(monkeypatch):
    """``line(rule)``: a rule sees each request on its way and may fail it or replace its answer."""
    send, asked = requests.Session.send, []

    def install(rule):
        def through(self, request, **options):
            asked.append((request.method, request.path_url))
            return rule(request, lambda: send(self, request, **options))

        monkeypatch.setattr(requests.Session, "send", through)
        return asked

    return install


def reply(status: int, body, **headers) -> requests.Response:
    """An answer as a server would send it."""
    answer = requests.Response()
    answer.status_code, answer._content = (
        status,
        body if isinstance(body, bytes) else (json.dumps(body).encode()),
    )
    answer.headers.update(headers)
    return answer


def is_create(request) -> bool:
    return (request.method, request.path_url) == ("POST", "/v2/pods")


def test_a_lost_answer_adopts_the_pod_and_rents_no_second(market, line):
    """The pod was made although its answer never came: it must neither leak nor be made twice."""
    offer = market.offers(OfferFilter())[0]

    def lose(request, go):
        answer = go()
        if is_create(request):
            raise requests.ConnectionError("cut")
        return answer

    asked = line(lose)
    instance = market.launch(offer, ServingSpec(), "line")
    assert instance.label.startswith(f"{LABEL_PREFIX}line:")
    assert asked.count(("POST", "/v2/pods")) == 1
    assert len([i for i in market.instances() if ":line:" in i.label]) == 1


def test_an_interrupted_launch_leaves_nothing(market, line):
    """The reader stops the cell while the answer is on its way."""
    offer = market.offers(OfferFilter())[0]

    def interrupt(request, go):
        answer = go()
        if is_create(request):
            raise KeyboardInterrupt
        return answer

    line(interrupt)
    with pytest.raises(KeyboardInterrupt):
        market.launch(offer, ServingSpec(), "line")
    assert not [i for i in market.instances() if ":line:" in i.label]


def test_when_nobody_knows_whether_it_is_rented_the_label_is_told(market, line):
    """Neither the launch nor the look-up gets through: the reader must learn what to look for."""
    offer = market.offers(OfferFilter())[0]

    def dead(request, go):
        raise requests.ConnectionError("down")

    line(dead)
    with pytest.raises(CourseError, match=r"status` \(label llm-course:line:"):
        market.launch(offer, ServingSpec(), "line")


def test_limits_and_hiccups_are_waited_out(market, line, monkeypatch):
    """One 429 with Retry-After and one 502 are no reason to fail."""
    waited, bad = [], [reply(429, {}, **{"Retry-After": "7"}), reply(502, b"<html>")]
    monkeypatch.setattr(time, "sleep", waited.append)
    line(lambda request, go: bad.pop(0) if bad else go())
    assert market.balance_usd() > 0
    assert waited == [7.0, 5.0]


@pytest.mark.parametrize(
    ("answer", "error", "told"),
    [
        (reply(402, {"title": "Payment", "detail": "Insufficient balance"}), CourseError, "top up"),
        (
            reply(400, {"title": "Bad", "detail": "no instances available with the resources"}),
            OfferGone,
            "no such machine is left",
        ),
        (
            reply(422, {"title": "T", "detail": "wrong body", "errors": ["disk: too small"]}),
            CourseError,
            "disk: too small",
        ),
        (reply(500, b"oops"), CourseError, "HTTP 500, oops"),
        (reply(201, b"not json"), CourseError, "does not fit its API"),
        (reply(201, {"id": "x"}), CourseError, "does not fit its API"),
    ],
)
def test_refusals_become_sentences(market, line, answer, error, told):
    """What went wrong and what to do, from RFC 9457 problems and from anything else."""
    offer = market.offers(OfferFilter())[0]
    asked = line(lambda request, go: answer if is_create(request) else go())
    with pytest.raises(error, match=told):
        market.launch(offer, ServingSpec(), "line")
    assert asked.count(("POST", "/v2/pods")) == 1, "renting is never repeated"


def test_running_without_a_container_is_still_loading(market, line):
    """RunPod says RUNNING while the image is pulled: the course must not believe it."""
    offer = market.offers(OfferFilter())[0]
    launched = market.launch(offer, ServingSpec(), "line")
    providers.wait_running(market, launched.id, progress=lambda line: None)

    def pulling(request, go):
        answer = go()
        pod = answer.json() | {"runtime": None}
        return reply(200, pod)

    line(pulling)
    assert market.instance(launched.id).status == "loading"


def test_the_key_is_never_shown(market):
    """A provider in a cell's output must not print the account's key."""
    key = market.api._http.headers["Authorization"].split()[1]
    assert key not in repr(market) + repr(market.api) + str(vars(market.api))
