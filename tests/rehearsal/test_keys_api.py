"""API keys with few rights: the real SDK makes them, the rehearsal holds them to these."""

import pytest
import requests
from support.openapi import Description
from vastai import VastAI

from helpers import rehearsal
from helpers.rent import guard
from helpers.rent.market import OfferFilter
from helpers.rent.vast import Vast
from helpers.serve.spec import ServingSpec

COURSE = ("misc", "user_read", "user_write", "billing_read", "instance_read", "instance_write")


@pytest.fixture
def key(provider, settings):
    """A maker of keys: rights -> the SDK that uses the new key, its number and its text."""
    made = []

    def make(*rights):
        new = provider.sdk.create_api_key("tests", {"api": {right: {} for right in rights}})
        made.append(new["id"])
        url = rehearsal.running(settings).url
        return VastAI(api_key=new["key"], server_url=url), new["id"], new["key"]

    yield make
    for number in {row["id"] for row in provider.sdk.show_api_keys()} & set(made):
        provider.sdk.delete_api_key(number)


def refused(call) -> int:
    """The HTTP status with which a call is refused."""
    with pytest.raises(requests.HTTPError) as caught:
        call()
    return caught.value.response.status_code


def test_a_key_may_do_what_its_rights_say_and_no_more(key):
    """Looking is allowed; registering a key, renting, destroying and making keys are not."""
    look, _, _ = key("misc", "user_read", "instance_read")
    assert look.show_user()["credit"] > 0
    offer = look.search_offers(query="num_gpus=1", limit=1)[0]
    assert isinstance(look.show_instances(), list)
    assert refused(lambda: look.create_ssh_key("ssh-ed25519 AAAA")) == 403
    assert refused(lambda: look.create_instance(offer["id"], image="x", disk=10)) == 403
    assert refused(lambda: look.destroy_instance(1)) == 403
    assert refused(lambda: look.create_api_key("more", {"api": {"misc": {}}})) == 403


def test_notebook_01s_rights_are_enough_for_the_course(key, settings):
    """Rent, look, read the log's link and destroy, with the rights that the notebook names."""
    _, _, text = key(*COURSE)
    market = Vast(text, server_url=rehearsal.running(settings).url, rehearsal=True)
    assert market.balance_usd() > 0
    offer = market.offers(OfferFilter())[0]
    machine = market.launch(offer, ServingSpec(), "rights")
    assert market.instance(machine.id).id == machine.id
    guard.destroy(market, machine.id)


def test_a_deleted_key_is_useless_at_once(key, provider):
    """401, as for a key that never was; deleting it twice is told."""
    look, number, _ = key("user_read")
    assert look.show_user()["id"] == 1
    provider.sdk.delete_api_key(number)
    assert refused(look.show_user) == 401
    assert refused(lambda: provider.sdk.delete_api_key(number)) == 404


def test_lists_hold_no_key(key, provider):
    """A key's text is told once, when it is made."""
    _, number, text = key("misc")
    [row] = [row for row in provider.sdk.show_api_keys() if row["id"] == number]
    assert row["rights"] == "misc"
    assert text not in str(provider.sdk.show_api_keys())


def test_a_limited_key_cannot_command_the_rehearsal(key, settings):
    """Neither stop it nor order bad luck, nor use its other marketplace."""
    _, _, text = key(*COURSE)
    server = rehearsal.running(settings)
    headers = {"Authorization": f"Bearer {text}"}
    for method, path in (("POST", "/rehearsal/stop"), ("GET", "/v2/pods")):
        answer = requests.request(method, server.url + path, headers=headers, timeout=5)
        assert answer.status_code == 403, path


def test_requests_and_answers_fit_the_published_description(key, provider, monkeypatch):
    """Creating, listing and deleting look as Vast.ai says they do."""
    description = Description("vast_openapi.yaml")
    seen, send = [], requests.Session.send

    def record(self, request, **options):
        seen.append(send(self, request, **options))
        return seen[-1]

    monkeypatch.setattr(requests.Session, "send", record)
    _, number, _ = key("misc")
    provider.sdk.show_api_keys()
    provider.sdk.delete_api_key(number)
    about_keys = [answer for answer in seen if "/auth/apikeys" in answer.url]
    assert len(about_keys) == 3
    for answer in about_keys:
        description.check(answer, answers=True)
