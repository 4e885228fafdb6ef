"""Guard: no surprise bill."""

import dataclasses
import threading

import pytest

from helpers import guard
from helpers.errors import CourseError
from helpers.providers import OfferFilter
from helpers.serving import ServingSpec


def test_renting_again_finds_the_running_instance(provider, instance, settings):
    """A second run of a notebook adopts the machine of the first."""
    again = guard.rent(provider, ServingSpec(), "tests", settings, progress=print)
    assert again.id == instance.id


def test_two_notebooks_at_once_rent_one_machine(provider, settings):
    """The look-up and the rental are one step."""
    found = []

    def notebook():
        found.append(guard.rent(provider, ServingSpec(), "twins", settings, progress=print).id)

    threads = [threading.Thread(target=notebook) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    guard.destroy(provider, found[0])
    assert len(found) == 2
    assert len(set(found)) == 1


def test_price_over_the_ceiling_is_refused_with_the_figures(provider, settings):
    """Nothing dearer than MAX_USD_PER_HOUR is rented."""
    poor = settings.model_copy(update={"max_usd_per_hour": 0.05})
    before = provider.instances()
    with pytest.raises(CourseError, match=r"costs \$0\.\d\d/h, your ceiling is \$0\.05/h"):
        guard.rent(provider, ServingSpec(), "dear", poor, progress=print)
    assert provider.instances() == before


def test_credit_under_one_hour_is_refused(small_offer, settings):
    """An hour that the balance does not pay is not begun."""
    with pytest.raises(CourseError, match="do not pay one hour"):
        guard.check_price(small_offer, settings, balance_usd=0.01)


def test_no_match_says_what_to_do(provider, settings):
    """An impossible filter ends in a sentence, not in an empty list."""
    with pytest.raises(CourseError, match="no offer matches"):
        guard.rent(provider, ServingSpec(), "none", settings, OfferFilter(min_vram_gb=999), print)


def test_taken_offers_are_skipped(provider, settings, monkeypatch):
    """When the cheapest is gone between search and launch, the next one is rented."""
    offers = provider.offers(OfferFilter())
    ghost = dataclasses.replace(offers[0], id="4242")
    monkeypatch.setattr(provider, "offers", lambda wanted: [ghost, *offers], raising=False)
    machine = guard.rent(provider, ServingSpec(), "next", settings, progress=print)
    try:
        assert machine.gpu == offers[0].gpu
    finally:
        guard.destroy(provider, machine.id)


def test_rented_destroys_also_after_an_error(provider, settings):
    """Leaving the block ends the rental, whatever happened in it."""
    with (
        pytest.raises(ZeroDivisionError),
        guard.rented(provider, ServingSpec(), "block", settings, progress=print),
    ):
        assert guard.find(provider, "block") is not None
        raise ZeroDivisionError
    assert guard.find(provider, "block") is None


def test_failed_instance_is_replaced(provider, settings):
    """A machine whose host died is destroyed and another one rented."""
    import signal

    from conftest import ours
    from test_rehearsal import eventually

    machine = guard.rent(provider, ServingSpec(), "replace", settings, progress=print)
    for process in ours(settings.rehearsal_home):
        if process.cmdline()[-1].endswith(f"/{machine.id}"):
            process.send_signal(signal.SIGKILL)
    assert eventually(lambda: provider.instance(machine.id).status == "failed")
    again = guard.rent(provider, ServingSpec(), "replace", settings, progress=print)
    assert again.id != machine.id
    assert provider.instance(machine.id) is None
    guard.destroy(provider, again.id)


def test_status_lists_price_running_and_stopped(provider, instance):
    """The table says what a machine costs now, and what it costs when only stopped."""
    table = guard.status(provider).set_index("id")
    row = table.loc[instance.id]
    assert 0 < row["usd_per_hour_stopped"] < row["usd_per_hour"]
