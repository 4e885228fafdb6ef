"""What only RunPod has, against the rehearsal; test_contract holds what both have."""

import dataclasses
import shlex

import pytest
import requests
from support.line import reply, tamper

from helpers import rent, serve
from helpers.errors import CourseError
from helpers.rent import guard, ssh
from helpers.rent.market import LABEL_PREFIX, OfferFilter
from helpers.rent.runpod import VLLM_SOURCE, RunPod, container
from helpers.serve.spec import ServingSpec


@pytest.fixture
def market(settings):
    """The rehearsal behind RunPod's API."""
    market = rent.connect(settings.model_copy(update={"provider": "rehearsal-runpod"}))
    yield market
    for instance in market.instances():
        if instance.label.startswith(f"{LABEL_PREFIX}line"):
            guard.destroy(market, instance.id)


@pytest.mark.parametrize("body", ["not json", {"name": "x"}])
def test_an_answer_of_another_form_is_told(market, monkeypatch, body):
    """RunPod changed its API: a sentence, after the look whether it is rented all the same."""
    offer = market.offers(OfferFilter())[0]
    odd = reply(201, body)
    tamper(monkeypatch, lambda request, go: odd if request.method == "POST" else go())
    with pytest.raises(CourseError, match="does not fit its API"):
        market.launch(offer, ServingSpec(), "line")


def test_running_without_a_container_is_still_loading(market, monkeypatch):
    """RunPod says RUNNING while the image is pulled: the course must not believe it."""
    offer = market.offers(OfferFilter())[0]
    launched = market.launch(offer, ServingSpec(), "line")
    rent.wait_running(market, launched.id, progress=lambda line: None)
    tamper(monkeypatch, lambda request, go: reply(200, go().json() | {"runtime": None}))
    assert market.instance(launched.id).status == "loading"


def test_a_bid_is_refused(market):
    """Before anything is rented, at full price."""
    with pytest.raises(CourseError, match="rents nothing by bid"):
        market.launch(market.offers(OfferFilter())[0], ServingSpec(), "line", bid_usd_per_hour=0.1)


def test_the_key_is_never_shown(market):
    """A provider in a cell's output must not print the account's key."""
    key = market.http.headers["Authorization"].split()[1]
    assert key not in repr(market) + str(vars(market))


def test_public_api_asks_for_the_generated_key(market):
    """RunPod's HTTPS proxy is open to everyone: without the key nobody may use the model."""
    spec = dataclasses.replace(ServingSpec(), host="0.0.0.0")
    launched = market.launch(market.offers(OfferFilter())[0], spec, "line")
    rent.wait_running(market, launched.id, progress=lambda line: None)
    url, key = market.public_api(launched.id)
    assert len(key) >= 32
    endpoint = serve.endpoint(url, api_key=key, source=market.name, poll_s=0.3)
    stream = endpoint.client().completions.create(
        model=endpoint.model, prompt="Hi", max_tokens=4, stream=True
    )
    assert sum(bool(piece.choices) for piece in stream) >= 2
    body = {"model": endpoint.model, "prompt": "Hi"}
    assert requests.post(f"{url}/completions", json=body, timeout=10).status_code == 401
    with pytest.raises(CourseError, match="refuses the API key"):
        serve.endpoint(url, api_key="wrong", poll_s=0.1)
    assert key not in market.logs(launched.id, 200) and key not in repr(endpoint)


def test_a_pod_behind_ssh_has_no_public_api(market, settings):
    """The course's own way opens no port to the internet but SSH."""
    market.register_key(ssh.ensure_key(settings))
    launched = market.launch(market.offers(OfferFilter())[0], ServingSpec(), "line")
    with pytest.raises(CourseError, match="no public API"):
        market.public_api(launched.id)


def test_existing_keys_survive_registering_ours(market, settings):
    """RunPod's request replaces all keys: the reader's other machines must stay reachable."""
    other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILXGDN/SclOozk1xsDztpmhGiKkkrfQB9SKoO8dSIQQZ me@x"
    market.register_key(other)
    market.register_key(ssh.ensure_key(settings))
    keys = market._send("GET", "/v2/account/ssh-keys")["keys"]
    assert {key.split()[1] for key in (other, ssh.ensure_key(settings))} <= {
        key.split()[1] for key in keys
    }


def test_interruptible_pods_are_not_offered(market):
    """Version 2 of RunPod's API cannot rent them: an offer would end in a full-price pod."""
    assert market.offers(OfferFilter(interruptible=True)) == []


def test_what_runs_in_a_pod():
    """vLLM's image with its arguments behind the proxy; an image with SSH behind a tunnel."""
    public = container(dataclasses.replace(ServingSpec(), host="0.0.0.0"))
    assert public["image"] == ServingSpec().image and public["ports"] == ["8000/http", "22/tcp"]
    assert public["args"].startswith(ServingSpec().model) and "VLLM_API_KEY" in public["env"]
    behind = container(ServingSpec())
    assert behind["image"].startswith("runpod/") and behind["ports"] == ["22/tcp"]
    assert "pip install vllm==0.33.0" in behind["args"] and behind["env"] == {}
    assert "curl" not in behind["args"]
    words = ("--chat-template", "/vllm-workspace/examples/a.jinja")
    script = shlex.split(container(ServingSpec(extra_args=words))["args"])[2]
    assert f"-o {words[1]} {VLLM_SOURCE}/v0.33.0/examples/a.jinja; }}; " in script


POD = {
    "id": "p1", "name": "llm-course:t:abc", "status": "RUNNING", "runtime": {"uptime": 1},
    "gpu": {"id": "NVIDIA GeForce RTX 4090", "count": 1}, "mounts": {"persistent": {"size": 9}},
    "ssh": {"direct": {"host": "1.2.3.4", "port": 22, "username": "root"}}, "cost": 0.4,
    "createdAt": "2026-01-01T00:00:00Z", "vcpuCount": 8,
}  # fmt: skip


@pytest.mark.parametrize("field", sorted(POD.keys() - {"id", "name"}))
@pytest.mark.parametrize("oddity", [None, "missing", {}, {"direct": None, "persistent": None}])
def test_one_odd_pod_is_listed_and_hides_no_other(monkeypatch, field, oddity):
    """While a pod is made some of its fields are null, and it costs already."""
    odd = POD | {"id": "p2", field: oddity}
    if oddity == "missing":
        del odd[field]
    gone = POD | {"id": "p4", "status": "TERMINATED"}
    pods = [odd, None, POD, POD | {"id": "p3", "name": None}, gone]
    tamper(monkeypatch, lambda request, go: reply(200, {"pods": pods}))
    market = RunPod("k")
    assert [pod.id for pod in market.instances()] == ["p2", "p1"]
    assert len(guard.status(market.everything())) == 3


def test_one_odd_gpu_type_hides_no_other(market, monkeypatch):
    """A type without a price, and the whole catalogue looked empty."""
    known = market.offers(OfferFilter())
    odd = [None, {"name": "X"}, {"id": "x", "price": None}]
    tamper(monkeypatch, lambda request, go: reply(200, {"gpus": odd + go().json()["gpus"]}))
    assert market.offers(OfferFilter()) == known
