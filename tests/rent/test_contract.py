"""One contract for every marketplace: the same rental, step by step, whoever the provider is.

With the providers' published descriptions at hand, every request we send is checked against them.
"""

import dataclasses
import time

import pytest
import requests
from support.line import rents, reply, tamper
from support.openapi import VAST_MISTAKES, Description

from helpers import rehearsal, rent
from helpers.errors import CourseError
from helpers.rent import guard, ssh
from helpers.rent.market import LABEL_PREFIX, OfferFilter, OfferGone
from helpers.rent.runpod import RunPod
from helpers.rent.vast import Vast
from helpers.serve.spec import ServingSpec

MARKETS = ("rehearsal", "rehearsal-runpod")
SECRET = "hf_" + "s3cret" * 4  # looks like a token, is none


@pytest.fixture
def sent(monkeypatch):
    """Every answer (with its request) that crosses the line in this test."""
    seen, send = [], requests.Session.send

    def record(self, request, **options):
        answer = send(self, request, **options)
        seen.append(answer)
        return answer

    monkeypatch.setattr(requests.Session, "send", record)
    return seen


@pytest.fixture(params=MARKETS)
def market(request, settings):
    """Each marketplace in turn, on the shared rehearsal; what a test rents is destroyed."""
    market = rent.connect(settings.model_copy(update={"provider": request.param}))
    yield market
    for instance in market.instances():
        if instance.label.startswith(f"{LABEL_PREFIX}contract"):
            guard.destroy(market, instance.id)


def quiet(line: str) -> None:
    """A progress that says nothing."""


def test_a_rental_from_the_balance_to_the_end(market, settings, sent):
    """Offers, launch, login, tunnel, completion, log, stop, start, destroy."""
    balance = market.balance_usd()
    assert 0 < balance <= 5
    key = ssh.ensure_key(settings)
    market.register_key(key)
    market.register_key(key)  # a second time changes nothing

    wanted = OfferFilter(min_vram_gb=20, max_usd_per_hour=2.0)
    offers = market.offers(wanted)
    prices = [offer.usd_per_hour for offer in offers]
    assert prices == sorted(prices) and prices[-1] <= 2.0
    assert all(o.vram_gb >= 20 and o.gpu_count == 1 for o in offers)
    assert all(o.provider == market.name and not o.interruptible for o in offers)
    assert market.offers(OfferFilter(max_usd_per_hour=0.01)) == []
    assert {o.gpu for o in market.offers(OfferFilter(gpu=(offers[0].gpu,)))} == {offers[0].gpu}

    spec = ServingSpec(env={"HF_TOKEN": SECRET})
    launched = market.launch(offers[0], spec, "contract")
    assert launched.label.startswith(f"{LABEL_PREFIX}contract:")
    assert launched.status in ("creating", "loading")
    assert guard.find(market, "contract").id == launched.id
    instance = rent.wait_running(market, launched.id, progress=quiet)
    assert instance.usd_per_hour == pytest.approx(offers[0].usd_per_hour, rel=0.02)
    assert instance.stopped_usd_per_hour < instance.usd_per_hour
    assert instance.gpu and instance.hardware.endswith("CPU cores")

    ssh.wait_login(instance, settings, progress=quiet)
    with ssh.tunnel(instance, settings) as tunnel:
        endpoint = tunnel.endpoint(poll_s=0.3)
        answer = endpoint.client().completions.create(
            model=endpoint.model, prompt="Hi", max_tokens=3
        )
    assert answer.usage.completion_tokens == 3
    log = market.logs(instance.id, 50)
    assert "rehearsal" in log and len(log.splitlines()) <= 50

    market.stop(instance.id)
    stopped = market.instance(instance.id)
    assert stopped.status == "stopped"
    assert stopped.usd_per_hour <= max(stopped.stopped_usd_per_hour, 0.02)
    market.start(instance.id)
    rent.wait_running(market, instance.id, progress=quiet)

    guard.destroy(market, instance.id)
    market.destroy(instance.id)  # a second time is no error
    assert market.instance(instance.id) is None and guard.find(market, "contract") is None
    assert market.balance_usd() < balance
    assert SECRET not in log + repr(launched) + repr(instance) + repr(spec) + launched.label
    _check_against_description(market, sent)


def test_templates_are_found_made_and_launched(market, settings, sent):
    """The "one click": the provider's vLLM template, one's own without keys, launch by its id."""
    theirs = next(t for t in market.templates() if not t.own)
    assert theirs.name == "vLLM" and theirs.image
    spec = ServingSpec(env={"HF_TOKEN": SECRET, "VLLM_LOGGING_LEVEL": "INFO"})
    number = market.create_template(spec, "course vLLM")
    mine = market.templates()[0]
    assert mine.id == number and mine.own and mine.name == "course vLLM"
    bodies = [str(answer.request.body) for answer in sent]
    assert any("VLLM_LOGGING_LEVEL" in body for body in bodies)
    assert not any(SECRET in body for body in bodies)
    for template in (theirs, mine):
        market.register_key(ssh.ensure_key(settings))
        offer = market.offers(OfferFilter())[0]
        launched = market.launch(offer, ServingSpec(), "contract", template_id=template.id)
        instance = rent.wait_running(market, launched.id, progress=quiet)
        ssh.wait_login(instance, settings, progress=quiet)
        with ssh.tunnel(instance, settings) as tunnel:
            assert tunnel.endpoint(poll_s=0.3).model
        guard.destroy(market, instance.id)
    with pytest.raises(CourseError):
        market.launch(market.offers(OfferFilter())[0], ServingSpec(), "contract", template_id="no")
    _check_against_description(market, sent)


def test_what_goes_wrong_is_told_in_a_sentence(market, settings):
    """A wrong key, a taken machine, a machine that is gone, a server that does not answer."""
    server = rehearsal.running(settings)
    wrong = type(market)(api_key="wrong", server_url=server.url, rehearsal=True)
    with pytest.raises(CourseError, match=r"does not accept (VAST|RUNPOD)_API_KEY"):
        wrong.balance_usd()
    assert market.instance("999999") is None
    market.destroy("999999")
    with pytest.raises(CourseError):
        market.logs("999999")
    offer = market.offers(OfferFilter())[0]
    gone = {"id": "1"} if isinstance(market, Vast) else {"id": "none"}
    with pytest.raises(OfferGone):
        market.launch(dataclasses.replace(offer, **gone), ServingSpec(), "contract")
    dead = type(market)(api_key="k", server_url="http://127.0.0.1:9", rehearsal=True)
    with pytest.raises(CourseError, match="did not answer"):
        dead.balance_usd()


def _ours(market) -> list:
    return [i for i in market.instances() if i.label.startswith(f"{LABEL_PREFIX}contract:")]


@pytest.fixture
def line(monkeypatch):
    """``line(rule)``: what :func:`support.line.tamper` does, for the requests that rent."""

    def install(rule):
        return tamper(
            monkeypatch,
            lambda request, go: rule(go) if rents(request.method, request.path_url) else go(),
        )

    return install


def test_a_lost_answer_adopts_the_machine_and_rents_no_second(market, line):
    """It was rented although its answer never came: it must neither leak nor be rented twice."""
    offer = market.offers(OfferFilter())[0]

    def lose(go):
        go()
        raise requests.ConnectionError("cut")

    asked = line(lose)
    instance = market.launch(offer, ServingSpec(), "contract")
    assert [i.id for i in _ours(market)] == [instance.id]
    assert sum(rents(*each) for each in asked) == 1


def test_an_interrupted_launch_leaves_nothing(market, line):
    """The reader stops the cell while the answer is on its way."""
    offer = market.offers(OfferFilter())[0]

    def interrupt(go):
        go()
        raise KeyboardInterrupt

    line(interrupt)
    with pytest.raises(KeyboardInterrupt):
        market.launch(offer, ServingSpec(), "contract")
    assert _ours(market) == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_renting_is_never_repeated(market, line, status):
    """Whatever a gateway says: the SDK alone would send it three times."""
    offer = market.offers(OfferFilter())[0]
    asked = line(lambda go: reply(status, "oops"))
    with pytest.raises(CourseError, match=f"HTTP {status}, oops"):
        market.launch(offer, ServingSpec(), "contract")
    assert sum(rents(*each) for each in asked) == 1


def test_when_nobody_knows_whether_it_is_rented_the_label_is_told(market, monkeypatch):
    """Neither the launch nor the look-up gets through: the reader must learn what to look for."""
    offer = market.offers(OfferFilter())[0]

    def dead(request, go):
        raise requests.ConnectionError("down")

    tamper(monkeypatch, dead)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(CourseError, match=r"status` \(label llm-course:contract:"):
        market.launch(offer, ServingSpec(), "contract")


def _check_against_description(market, sent) -> None:
    """Every request of ours fits what the provider publishes (skips where it is not at hand)."""
    if isinstance(market, RunPod):
        description = Description("runpod_openapi_v2.json")
    else:
        description = Description("vast_openapi.yaml", VAST_MISTAKES)
    own = ("/rehearsal", "/logs/", "/v1/", "/graphql", "/version")
    checked = 0
    for answer in sent:
        if not answer.request.path_url.startswith(own):
            description.check(answer, answers=isinstance(market, RunPod))
            checked += 1
    assert checked > 8


def test_a_forgotten_machine_ends_itself(market, settings):
    """The dead-man's switch works at both doors: past its time the machine is off the bill."""
    market.register_key(ssh.ensure_key(settings))
    offer = market.offers(OfferFilter())[0]
    launched = market.launch(offer, ServingSpec(), "contract", lifetime_s=2)
    deadline = time.monotonic() + 30
    while market.instance(launched.id) is not None and time.monotonic() < deadline:
        time.sleep(0.5)
    assert market.instance(launched.id) is None


@pytest.mark.parametrize(
    "spelled", ["RTX_4090", "rtx 4090", "NVIDIA GeForce RTX 4090", "GeForce_RTX_4090"]
)
def test_a_gpu_may_be_spelled_as_elsewhere(market, spelled):
    """Vast.ai's program writes RTX_4090, RunPod the whole name; each search knows one spelling."""
    assert {o.gpu for o in market.offers(OfferFilter(gpu=(spelled,)))} == {"RTX 4090"}


def test_a_gpu_that_nobody_offers_is_told(market):
    """An empty list would not say that the name is wrong."""
    with pytest.raises(CourseError, match="GPU called 'RTX 4O90'") as told:
        market.offers(OfferFilter(gpu=("RTX 4O90",)))
    assert told.value.hint.startswith("did you mean RTX 4090")
    assert market.offers(OfferFilter(gpu=("RTX 4090",), max_usd_per_hour=0.001)) == []
