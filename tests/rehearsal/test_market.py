"""Honest money: what a rental costs, by the second."""

import time

import pytest
from support.machines import Idle

from helpers import rent
from helpers.rehearsal.market import Books
from helpers.rent import guard
from helpers.rent.market import OfferFilter


def test_money_is_metered_by_the_second(own_rehearsal):
    """Running bills GPU and disk, stopped bills the disk, destroyed bills nothing."""
    provider = rent.connect(own_rehearsal)
    offer = provider.offers(OfferFilter(gpu=("H200",)))[0]
    machine = provider.launch(offer, Idle(), "money")
    machine = rent.wait_running(provider, machine.id)
    before, began = provider.balance_usd(), time.monotonic()
    time.sleep(2)
    spent, hours = before - provider.balance_usd(), (time.monotonic() - began) / 3600
    assert spent == pytest.approx(offer.usd_per_hour * hours, rel=0.2)

    provider.stop(machine.id)
    stopped = provider.instance(machine.id)
    assert stopped.status == "stopped"
    assert 0 < stopped.usd_per_hour == stopped.stopped_usd_per_hour < offer.usd_per_hour / 10
    before = provider.balance_usd()
    time.sleep(2)
    assert 0 < before - provider.balance_usd() < spent / 5

    guard.destroy(provider, machine.id)
    before = provider.balance_usd()
    time.sleep(1)
    assert provider.balance_usd() == before


def test_the_state_of_an_older_version_is_read():
    """Credit and keys are kept; rentals were a list before version 0.2."""
    old = {"credit": 4.5, "public_keys": ["ssh-ed25519 A"], "templates": [], "rentals": []}
    books = Books.model_validate(old)
    assert (books.credit, books.public_keys, books.rentals) == (4.5, ["ssh-ed25519 A"], {})


def test_a_number_means_one_machine():
    """What ends with the machine of one marketplace is not that of another with its number."""
    assert len({Books().next_id for _ in range(5)}) == 5
