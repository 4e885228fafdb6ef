"""Both doors against what the providers publish: requests made up from it, and every answer."""

import copy
import re

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from schemathesis.core.failures import FailureGroup
from schemathesis.generation import GenerationMode
from support.machines import Idle
from support.openapi import Description

from helpers import rehearsal, rent
from helpers.rehearsal import keys_api, runpod_api, vast_api, web_api
from helpers.rent import guard

DOORS = {
    "vast": ("vast_openapi.yaml", "rehearsal", "/api/v0/instances/{id}"),
    "runpod": ("runpod_openapi_v2.json", "rehearsal-runpod", "/v2/pods/{id}"),
}
# Where a description contradicts itself, its provider's documentation or the provider's own
# programs (those are right), or where the rehearsal knowingly offers less. The first word is the
# operation, then comes the title of the failure.
UNSAID, TAKEN = "Undocumented status code", "Schema-violating request accepted"
REFUSED, ANSWER = "Schema-valid request rejected", "Response violates schema"
KNOWN = {
    ("GET /api/v0/instances/{id}", ANSWER): "null says that it is gone; `ports` is an object, "
    "`extra_env` a list of pairs, as the description of the list has them",
    ("GET /api/v0/instances/{id}", TAKEN): "the SDK asks for one that is gone and gets null",
    ("GET /api/v1/instances", TAKEN): "one page holds all: nothing that pages or filters is read",
    ("DELETE /api/v0/instances/{id}", UNSAID): "401 is left out",
    ("PUT /api/v0/instances/request_logs/{id}", UNSAID): "401 is left out",
    ("POST /api/v0/bundles", UNSAID): "401 is left out",
    ("POST /api/v0/bundles", TAKEN): "null filters nothing",
    ("POST /api/v0/bundles", REFUSED): "`order` is a list of pairs, a filter has an operator",
    ("PUT /api/v0/asks/{id}", REFUSED): "`env` is an object",
    ("POST /api/v0/ssh", REFUSED): "any text counts as a key there",
    ("POST /api/v0/ssh", ANSWER): "a body that is no JSON is `invalid_args`, as elsewhere",
    ("POST /api/v0/auth/apikeys", ANSWER): "a body that is no JSON is `invalid_args`, as elsewhere",
    ("POST /api/v0/template", REFUSED): "`recommended_disk_space` has a lower limit",
    ("POST /api/v0/template", TAKEN): "only what a rental needs is checked",
    ("POST /api/v0/auth/apikeys", REFUSED): "`permissions` has to name a right",
    ("GET /api/v0/template", REFUSED): "`select_filters` is JSON",
    ("GET /v2/catalog/gpus", REFUSED): "in prose: `include` needs `product`, the others `include`",
    ("POST /v2/pods", REFUSED): "in prose: a GPU or a CPU; here no CPU, no mount, no registry",
    ("PUT /v2/account/ssh-keys", REFUSED): "white space in JavaScript is not that of Python",
    ("GET /v2/pods", TAKEN): "a query that nobody asked for is no harm",
    ("GET /v2/catalog/templates", TAKEN): "a query that nobody asked for is no harm",
}


@pytest.fixture(params=DOORS)
def door(request, own_rehearsal):
    """The description, the server behind the door, and the operations that are offered."""
    file, provider, one = DOORS[request.param]
    document = copy.deepcopy(Description(file).document)
    market = rent.connect(own_rehearsal.model_copy(update={"provider": provider}))
    machine = guard.rent(market, Idle(), "door", own_rehearsal, progress=lambda line: None)
    doors = (vast_api.VastAPI(None), runpod_api.RunPodAPI(None), keys_api.KeysAPI())
    routes = [route for each in doors for route in web_api.routes(each)]
    offered = {(r.method.lower(), r.path.removesuffix("{_:/?}")) for r in routes}
    # One machine is there to be looked at; whoever changes or ends one names another.
    there = {"name": "id", "in": "path", "required": True, "schema": {"enum": [machine.id]}}
    document["paths"][one]["get"]["parameters"] = [there]
    yield document, rehearsal.running(own_rehearsal), offered


def test_answers_are_as_described(door):
    """What fits a description is taken, what does not is refused, each in the described form."""
    document, server, offered = door
    for path, operations in document["paths"].items():
        for method in {"get", "put", "post", "delete", "patch"} & operations.keys():
            if (method, path) not in offered or path.endswith("/logs"):  # a stream without an end
                del operations[method]
    headers = {"Authorization": f"Bearer {server.token}"}
    wrong, answered = {}, set()

    def check(case):
        answer = case.call(base_url=server.url, headers=headers, timeout=20)
        answered.add((case.operation.label, answer.status_code))
        try:
            case.validate_response(answer, headers=headers)
        except FailureGroup as failures:
            for failure in failures.exceptions:
                key = (case.operation.label, failure.title)
                wrong.setdefault(key, f"{failure} {case.body!r} {answer.text}"[:600])

    few = hypothesis_settings(
        max_examples=8, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            few(given(case=found.ok().as_strategy(generation_mode=mode))(check))()
    unknown = [f"{what}: {told}" for what, told in wrong.items() if what not in KNOWN]
    assert not unknown, "\n".join(unknown)
    assert len({label for label, status in answered if status < 300}) > 5


def test_what_is_not_offered_says_so(door):
    """Every other route and method of the description: a sentence, in the door's own form."""
    document, server, offered = door
    headers = {"Authorization": f"Bearer {server.token}"}
    asked = 0
    for path, operations in document["paths"].items():
        for method in {"get", "put", "post", "delete", "patch"} & operations.keys():
            if (method, path) in offered:
                continue
            url = server.url + re.sub(r"\{\w+\}", "7", path)
            answer = requests.request(method, url, headers=headers, timeout=20)
            assert answer.status_code in (404, 405), (method, path)
            told = answer.json()
            if path.startswith("/v2/"):
                assert answer.headers["Content-Type"] == "application/problem+json"
                assert told["status"] == answer.status_code
            assert "is not offered here" in told.get("detail", told.get("msg"))
            asked += 1
    assert asked > 20
