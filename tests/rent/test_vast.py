"""What only Vast.ai has, against the rehearsal; test_contract holds what both have."""

import json

import pytest
import requests
from support.line import reply, tamper

from helpers import rehearsal
from helpers.errors import CourseError
from helpers.rent.market import OfferFilter, OfferGone
from helpers.rent.vast import Vast
from helpers.serve.spec import ServingSpec


@pytest.mark.parametrize(
    "wanted",
    [
        OfferFilter(gpu=("RTX 3090", "RTX 4090")),
        OfferFilter(min_vram_gb=40),
        OfferFilter(max_usd_per_hour=0.3),
        OfferFilter(min_reliability=0.999),
        OfferFilter(min_cuda=13.0),
        OfferFilter(gpu_count=2, max_usd_per_hour=1),
    ],
)
def test_every_offer_satisfies_the_filter(provider, wanted):
    """What is offered is what was asked for, the cheapest first."""
    offers = provider.offers(wanted)
    assert offers
    prices = [offer.usd_per_hour for offer in offers]
    assert prices == sorted(prices)
    for offer in offers:
        assert not wanted.gpu or offer.gpu in wanted.gpu
        assert offer.gpu_count == wanted.gpu_count
        assert offer.vram_gb * 1.03 >= wanted.min_vram_gb
        assert offer.usd_per_hour <= (wanted.max_usd_per_hour or 1e9)
        assert offer.reliability >= wanted.min_reliability


def test_price_includes_the_disk(provider):
    """More disk makes the same machine dearer."""
    small = provider.offers(OfferFilter(gpu=("L40S",), disk_gb=10))[0]
    large = provider.offers(OfferFilter(gpu=("L40S",), disk_gb=500))[0]
    assert (large.id, large.usd_per_hour > small.usd_per_hour) == (small.id, True)


def test_key_is_registered_once(provider, settings):
    """Registering again changes nothing."""
    from helpers.rent import ssh

    key = ssh.ensure_key(settings)
    provider.register_key(key)
    provider.register_key(key)
    body = key.split()[1]
    assert sum(body in row["public_key"] for row in provider.sdk.show_ssh_keys()) == 1


def test_taken_offer_is_told_as_such(provider, settings):
    """Renting what is rented raises OfferGone, so that the next one can be tried."""
    offer = provider.offers(OfferFilter(gpu=("H200",)))[0]
    machine = provider.launch(offer, ServingSpec(), "bad")
    with pytest.raises(OfferGone, match="somebody else"):
        provider.launch(offer, ServingSpec(), "bad")
    provider.destroy(machine.id)


def test_wrong_key_says_where_to_get_one(provider, settings):
    """401 becomes a sentence with the link; the key is not in it."""
    wrong = Vast(api_key="not-the-key-at-all", server_url=rehearsal.running(settings).url)
    with pytest.raises(CourseError) as caught:
        wrong.balance_usd()
    assert "does not accept VAST_API_KEY" in str(caught.value)
    assert "https://cloud.vast.ai/manage-keys/" in str(caught.value)
    assert "not-the-key-at-all" not in str(caught.value)


def test_refusal_inside_a_200_is_an_error(provider, small_offer, monkeypatch):
    """``success: false`` under HTTP 200 is not a rental."""
    said = {"success": False, "error": "spend_rate_limit", "msg": "new account"}
    tamper(monkeypatch, lambda request, go: reply(200, said) if "/asks/" in request.url else go())
    with pytest.raises(CourseError, match="spend_rate_limit new account"):
        provider.launch(small_offer, ServingSpec(), "bad")


def test_an_offer_by_bid_needs_a_bid(provider):
    """Without one the machine would be rented at the full price, which nobody has agreed to."""
    offer = provider.offers(OfferFilter(interruptible=True))[0]
    with pytest.raises(CourseError, match="without one it is rented at the full price"):
        provider.launch(offer, ServingSpec(), "bad")


def test_rehearsal_says_what_it_is(provider, settings):
    """Offers, account and templates are marked: nobody takes them for real."""
    server = rehearsal.running(settings)
    head = {"Authorization": f"Bearer {server.token}"}
    user = requests.get(f"{server.url}/api/v0/users/current/", headers=head, timeout=5).json()
    assert user["rehearsal"] is True
    offers = provider.offers(OfferFilter())
    assert {o.provider for o in offers} == {"rehearsal"}
    assert all("Rehearsal" in o.location for o in offers)


OFFER = {
    "id": 1, "gpu_name": "RTX 4090", "num_gpus": 1, "gpu_ram": 24564, "gpu_mem_bw": 900.0,
    "dph_total": 0.3, "min_bid": 0.1, "reliability2": 0.99, "geolocation": "X",
}  # fmt: skip
MACHINE = {
    "id": 7, "label": "llm-course:t:1", "actual_status": "running", "status_msg": "up",
    "gpu_name": "RTX 4090", "num_gpus": 1, "dph_total": 0.3, "start_date": 1.0, "extra_env": [],
    "ports": {"22/tcp": [{"HostPort": "40022"}]}, "public_ipaddr": "1.2.3.4",
}  # fmt: skip


def answered(monkeypatch, body: dict) -> list[dict]:
    """Vast.ai answers everything so; returns the bodies that it is sent."""
    sent: list[dict] = []

    def answer(request, go):
        sent.append(json.loads(request.body or "{}"))
        return reply(200, body)

    tamper(monkeypatch, answer)
    return sent


@pytest.mark.parametrize("field", sorted(OFFER))
@pytest.mark.parametrize("oddity", [None, "missing", {}])
def test_one_odd_offer_hides_no_other(monkeypatch, field, oddity):
    """A null in somebody's row, and the whole market looked empty."""
    odd = OFFER | {"id": 2, field: oddity}
    if oddity == "missing":
        del odd[field]
    answered(monkeypatch, {"offers": [odd, OFFER]})
    assert "1" in {offer.id for offer in Vast("k").offers(OfferFilter())}


@pytest.mark.parametrize("field", sorted(MACHINE.keys() - {"id", "label"}))
@pytest.mark.parametrize("oddity", [None, "missing", {}, "2026-01-01 12:33:11.123 +0000 UTC"])
def test_one_odd_machine_is_listed_and_hides_no_other(monkeypatch, field, oddity):
    """What is not listed is not destroyed: it goes on costing."""
    odd = MACHINE | {"id": 8, field: oddity}
    if oddity == "missing":
        del odd[field]
    answered(monkeypatch, {"instances": [odd, None, MACHINE, MACHINE | {"id": 9, "label": None}]})
    assert [machine.id for machine in Vast("k").instances()] == ["8", "7"]
    assert len(Vast("k").everything()) == 3


def test_all_pages_are_read(monkeypatch):
    """The service shows 25 at a time."""
    pages = [{"instances": [MACHINE], "next_token": "t"}, {"instances": [MACHINE | {"id": 8}]}]
    asked = tamper(monkeypatch, lambda request, go: reply(200, pages[len(asked) - 1]))
    assert [machine.id for machine in Vast("k").instances()] == ["7", "8"]
    assert "after_token=t" in asked[1][1]
