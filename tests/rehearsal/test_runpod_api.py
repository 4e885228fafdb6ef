"""The rehearsal's second door: RunPod's REST API v2, and what it refuses."""

import pytest
import requests
from support.openapi import Description

from helpers import rehearsal, rent
from helpers.rehearsal import runpod_api

GPU = {"id": "NVIDIA GeForce RTX 4090"}
POD = {"name": "pod", "image": "x", "gpu": GPU}


@pytest.fixture
def ask(provider, settings):
    """``ask(method, path, body)``: the answer of the door."""
    server = rehearsal.running(settings)
    head = {"Authorization": f"Bearer {server.token}"}

    def send(method, path, body=None):
        return requests.request(method, server.url + path, json=body, headers=head, timeout=20)

    return send


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"disk": -1}, 422, "$.disk: it is less than the minimum of 1"),
        ({"disk": "20"}, 422, "$.disk: it is not of type 'integer'"),
        ({"ports": "8000/http"}, 422, "$.ports: it is not of type 'array'"),
        ({"ports": ["8000"]}, 400, "ports.0: String should match pattern"),
        ({"env": "HF_TOKEN=secret"}, 422, "$.env: it is not of type 'object'"),
        ({"env": {"HF_TOKEN": ["secret"]}}, 422, "$.env.HF_TOKEN: it is not of type 'string'"),
        ({"gpuTypeIds": []}, 422, "('gpuTypeIds' was unexpected)"),
        ({"gpu": {**GPU, "count": 0}}, 422, "$.gpu.count: it is less than the minimum of 1"),
        ({"cloud": "MINE"}, 422, "$.cloud: it is not one of ['SECURE', 'COMMUNITY']"),
        ({"cpu": {"id": "cpu3g", "vcpuCount": 2}}, 422, "$.cpu: it is not one of []"),
        ({"templateId": "none"}, 404, "there is no template none"),
        ({"gpu": {"id": "none"}}, 400, "no instances currently available"),
    ],
)
def test_a_wrong_rental_is_refused(ask, body, status, told):
    """As problem+json that says what is wrong and never what was sent; nothing is rented."""
    answer = ask("POST", "/v2/pods", POD | body)
    assert (answer.status_code, answer.headers["Content-Type"]) == (
        status,
        "application/problem+json",
    )
    said = answer.json()
    assert said["status"] == status and told in said["detail"]
    assert "secret" not in answer.text
    assert all(pod["name"] != "pod" for pod in ask("GET", "/v2/pods").json()["pods"])


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (("POST", "/v2/pods", []), 422),
        (("POST", "/v2/templates", {"name": "t", "image": "x", "disk": -1}), 422),
        (("PUT", "/v2/account/ssh-keys", {"keys": ["no key"]}), 422),
        (("POST", "/v2/pods/none/action", {"action": "start"}), 404),
        (("GET", "/v2/catalog/gpus?count=2"), 422),
        (("GET", "/v2/catalog/gpus?include=AVAILABILITY&product=POD&count=0"), 422),
        (("GET", "/v2/serverless"), 404),
        (("PATCH", "/v2/pods/none", {}), 405),
        (("GET", "/v2/no-such-thing"), 404),
    ],
)
def test_other_wrong_requests_are_refused(ask, request_, status):
    """Bodies, queries, routes and methods: the same form everywhere."""
    answer = ask(*request_)
    assert (answer.status_code, answer.json()["status"]) == (status, status), answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_graphql_answers_the_balance_only(ask):
    """Whoever tries another program must not take a wrong answer for the right one."""
    balance = ask("POST", "/graphql", {"query": "query { myself { clientBalance } }"}).json()
    assert balance["data"]["myself"]["clientBalance"] > 0
    other = ask("POST", "/graphql", {"query": "query { gpuTypes { id } }"}).json()
    assert "offers no more" in other["errors"][0]["message"]


def test_a_pod_is_restarted_with_an_empty_disk_and_terminated(ask, settings):
    """The four actions of the API, each only where the state allows it."""
    market = rent.connect(settings.model_copy(update={"provider": "rehearsal-runpod"}))
    pod = ask("POST", "/v2/pods", POD | {"disk": 1, "args": "touch old"}).json()
    path = f"/v2/pods/{pod['id']}/action"
    assert pod["actions"] == ["stop", "terminate"]
    assert ask("POST", path, {"action": "start"}).status_code == 409
    rent.wait_running(market, pod["id"], progress=print)
    root = settings.rehearsal_home / "instances" / pod["id"] / "root"
    (root / "mine").touch()
    assert ask("POST", path, {"action": "restart"}).json()["status"] == "PROVISIONING"
    rent.wait_running(market, pod["id"], progress=print)
    assert not (root / "mine").exists()
    assert ask("POST", path, {"action": "terminate"}).status_code == 204
    assert ask("GET", f"/v2/pods/{pod['id']}").status_code == 404


def test_the_rules_are_the_published_ones():
    """What the door checks is what RunPod publishes, without its prose."""
    published = Description("runpod_openapi_v2.json").document["components"]["schemas"]
    prose = ("description", "example", "examples", "title", "default", "format")

    def bare(rule):
        if isinstance(rule, list):
            return [bare(each) for each in rule]
        if not isinstance(rule, dict):
            return rule
        kept = {k: v for k, v in rule.items() if k not in prose and not k.startswith("x-")}
        names = kept.pop("properties", None)
        kept = {k: bare(v) for k, v in kept.items()}
        return kept | ({"properties": {k: bare(v) for k, v in names.items()}} if names else {})

    ours = runpod_api._PUBLISHED["components"]["schemas"]
    added = {"OfferedHere", "GpuQuery", "LogQuery", "TemplateQuery"}
    assert added < set(ours)
    for name in set(ours) - added:
        assert ours[name] == bare(published[name]), name
