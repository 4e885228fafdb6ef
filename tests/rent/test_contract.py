"""One contract for every marketplace: the same rental, step by step, whoever the provider is.

With the providers' published descriptions at hand, every request we send is checked against them.
"""

import dataclasses
import time

import pytest
import requests
from support.openapi import VAST_MISTAKES, Description

from helpers import rehearsal, serve
from helpers.errors import CourseError
from helpers.rent import guard, ssh
from helpers.rent import market as providers
from helpers.rent.market import LABEL_PREFIX, OfferFilter, OfferGone
from helpers.rent.runpod import RunPod, container
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
    market = providers.connect(settings.model_copy(update={"provider": request.param}))
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
    assert all(o.vram_gb >= 20 and o.gpu_count == 1 and o.verified for o in offers)
    assert all(o.provider == market.name and not o.interruptible for o in offers)
    assert market.offers(OfferFilter(max_usd_per_hour=0.01)) == []
    assert {o.gpu for o in market.offers(OfferFilter(gpu=(offers[0].gpu,)))} == {offers[0].gpu}

    spec = ServingSpec(env={"HF_TOKEN": SECRET})
    launched = market.launch(offers[0], spec, "contract")
    assert launched.label.startswith(f"{LABEL_PREFIX}contract:")
    assert launched.status in ("creating", "loading")
    assert guard.find(market, "contract").id == launched.id
    instance = providers.wait_running(market, launched.id, progress=quiet)
    assert instance.usd_per_hour == pytest.approx(offers[0].usd_per_hour, rel=0.02)
    assert instance.stopped_usd_per_hour < instance.usd_per_hour
    assert instance.gpu and instance.hardware.endswith("CPU cores") and instance.hours < 0.1

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
    providers.wait_running(market, instance.id, progress=quiet)

    guard.destroy(market, instance.id)
    market.destroy(instance.id)  # a second time is no error
    assert market.instance(instance.id) is None and guard.find(market, "contract") is None
    assert market.balance_usd() < balance
    assert SECRET not in log + repr(launched) + repr(instance) + repr(spec) + launched.label
    _check_against_description(market, sent)


def test_templates_are_found_made_and_launched(market, settings, sent):
    """The "one click": the provider's vLLM template, one's own without keys, launch by its id."""
    theirs = next(t for t in market.templates() if not t.own)
    assert theirs.name == "vLLM" and theirs.image and theirs.disk_gb >= 20
    spec = ServingSpec(env={"HF_TOKEN": SECRET, "VLLM_LOGGING_LEVEL": "INFO"})
    mine = market.create_template(spec, "course vLLM")
    assert mine.own and mine.env == ("VLLM_LOGGING_LEVEL",)
    assert market.templates()[0] == mine
    assert not any(SECRET in str(answer.request.body) for answer in sent)
    for template in (theirs, mine):
        market.register_key(ssh.ensure_key(settings))
        offer = market.offers(OfferFilter())[0]
        launched = market.launch(offer, ServingSpec(), "contract", template_hash=template.id)
        instance = providers.wait_running(market, launched.id, progress=quiet)
        ssh.wait_login(instance, settings, progress=quiet)
        with ssh.tunnel(instance, settings) as tunnel:
            assert tunnel.endpoint(poll_s=0.3).model
        guard.destroy(market, instance.id)
    with pytest.raises(CourseError):
        market.launch(
            market.offers(OfferFilter())[0], ServingSpec(), "contract", template_hash="no"
        )
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
    gone = {"id": "1", "gpu": "none"} if isinstance(market, Vast) else {"id": "SECURE:none"}
    with pytest.raises(OfferGone):
        market.launch(dataclasses.replace(offer, **gone), ServingSpec(), "contract")
    dead = type(market)(api_key="k", server_url="http://127.0.0.1:9", rehearsal=True)
    with pytest.raises(CourseError, match="did not answer"):
        dead.balance_usd()


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


# -- what only RunPod has ------------------------------------------------------------------


@pytest.fixture
def runpod(settings):
    """The rehearsal behind RunPod's API."""
    market = providers.connect(settings.model_copy(update={"provider": "rehearsal-runpod"}))
    yield market
    for instance in market.instances():
        if instance.label.startswith(f"{LABEL_PREFIX}public"):
            guard.destroy(market, instance.id)


def test_public_api_asks_for_the_generated_key(runpod, sent):
    """RunPod's HTTPS proxy is open to everyone: without the key nobody may use the model."""
    spec = dataclasses.replace(ServingSpec(), host="0.0.0.0")
    launched = runpod.launch(runpod.offers(OfferFilter())[0], spec, "public")
    providers.wait_running(runpod, launched.id, progress=quiet)
    url, key = runpod.public_api(launched.id)
    assert len(key) >= 32
    endpoint = serve.endpoint(url, api_key=key, source=runpod.name, poll_s=0.3)
    stream = endpoint.client().completions.create(
        model=endpoint.model, prompt="Hi", max_tokens=4, stream=True
    )
    assert sum(bool(piece.choices) for piece in stream) >= 2
    body = {"model": endpoint.model, "prompt": "Hi"}
    assert requests.post(f"{url}/completions", json=body, timeout=10).status_code == 401
    with pytest.raises(CourseError, match="refuses the API key"):
        serve.endpoint(url, api_key="wrong", poll_s=0.1)
    assert key not in runpod.logs(launched.id, 200) and key not in repr(endpoint)


def test_a_pod_behind_ssh_has_no_public_api(runpod, settings):
    """The course's own way opens no port to the internet but SSH."""
    runpod.register_key(ssh.ensure_key(settings))
    launched = runpod.launch(runpod.offers(OfferFilter())[0], ServingSpec(), "public")
    with pytest.raises(CourseError, match="no public API"):
        runpod.public_api(launched.id)


def test_existing_keys_survive_registering_ours(runpod, settings):
    """RunPod's request replaces all keys: the reader's other machines must stay reachable."""
    other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILXGDN/SclOozk1xsDztpmhGiKkkrfQB9SKoO8dSIQQZ me@x"
    runpod.register_key(other)
    runpod.register_key(ssh.ensure_key(settings))
    keys = runpod.api.json("keys", "GET", "/v2/account/ssh-keys")["keys"]
    assert {key.split()[1] for key in (other, ssh.ensure_key(settings))} <= {
        key.split()[1] for key in keys
    }


def test_interruptible_pods_are_not_offered(runpod):
    """Version 2 of RunPod's API cannot rent them: an offer would end in a full-price pod."""
    assert runpod.offers(OfferFilter(interruptible=True)) == []


def test_what_runs_in_a_pod():
    """vLLM's image with its arguments behind the proxy; an image with SSH behind a tunnel."""
    public = container(dataclasses.replace(ServingSpec(), host="0.0.0.0"))
    assert public["image"] == ServingSpec().image and public["ports"] == ["8000/http", "22/tcp"]
    assert public["args"].startswith(ServingSpec().model) and "VLLM_API_KEY" in public["env"]
    behind = container(ServingSpec())
    assert behind["image"].startswith("runpod/") and behind["ports"] == ["22/tcp"]
    assert "pip install vllm==0.33.0" in behind["args"] and behind["env"] == {}


def test_a_forgotten_machine_ends_itself(market, settings):
    """The dead-man's switch works at both doors: past its time the machine is off the bill."""
    market.register_key(ssh.ensure_key(settings))
    offer = market.offers(OfferFilter())[0]
    launched = market.launch(offer, ServingSpec(), "contract", lifetime_s=2)
    deadline = time.monotonic() + 30
    while market.instance(launched.id) is not None and time.monotonic() < deadline:
        time.sleep(0.5)
    assert market.instance(launched.id) is None
