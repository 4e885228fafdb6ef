"""From the settings to a provider, the first line of every notebook, and the wait for a machine."""

import re
import time
from types import SimpleNamespace

import pytest
import requests
from pydantic import SecretStr

from helpers import rehearsal, rent
from helpers.errors import CourseError
from helpers.rent import Instance
from helpers.rent.ledger import Ledger

KEY = "0123456789abcdef" * 2


def machine(status: str, **more) -> Instance:
    """An instance in some state."""
    facts = {
        "id": "7", "provider": "vast", "label": "llm-course:x:1", "status": status, "detail": "",
        "gpu": "RTX 4090", "gpu_count": 2, "usd_per_hour": 0.5, "stopped_usd_per_hour": 0.01,
        "created": time.time() - 1800,
    }  # fmt: skip
    return Instance(**facts | more)


def walking(*seen: Instance | None, log: str = "line\n"):
    """A provider whose one instance is seen in these states, one after the other."""
    left = list(seen)
    return SimpleNamespace(
        poll_s=0.01,
        instance=lambda _: left.pop(0) if len(left) > 1 else left[0],
        logs=lambda _, lines: log,
    )


@pytest.mark.parametrize("name", ["vast", "runpod"])
def test_without_a_key_it_says_which_and_where_to_get_it(settings, name):
    """The reader learns the variable and the page; the first cell goes on, and asks nobody."""
    mine = settings.model_copy(update={"provider": name})
    with pytest.raises(CourseError, match=f"{name.upper()}_API_KEY is not set") as told:
        rent.connect(mine)
    assert "https://" in told.value.hint
    assert rent.preflight(mine).startswith(
        f"provider: {name} (real money), {name.upper()}_API_KEY is not set"
        ", your instances now: at least "
    )


def test_the_first_line_starts_nothing(own_rehearsal):
    """Notebook 00 needs no marketplace: looking at its first cell must not start one."""
    assert rent.preflight(own_rehearsal) == (
        "provider: rehearsal (pretend money), not started yet, your instances now: 0"
    )
    assert rehearsal.running(own_rehearsal) is None and rent.accounts(own_rehearsal) == ({}, [])


def test_the_first_line_of_a_running_rehearsal(settings, provider):
    """Its credit, in pretend dollars."""
    words = r"provider: rehearsal \(pretend money\), credit: \$\d\.\d\d, your instances now: \d.*"
    assert re.fullmatch(words, rent.preflight(settings))


def test_a_provider_that_cannot_be_asked_is_told(own_rehearsal, monkeypatch):
    """No network: one line all the same, which says so, and holds no key."""

    def dead(*_, **__):
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(requests.Session, "send", dead)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    line = rent.preflight(
        own_rehearsal.model_copy(update={"provider": "vast", "vast_api_key": SecretStr(KEY)})
    )
    assert "Vast.ai did not answer" in line and "at least 0 (vast cannot be asked: " in line
    assert KEY not in line and "\n" not in line


def test_whoever_may_hold_a_machine_is_asked(own_rehearsal):
    """No key any more, and a rental that nobody has seen end: that is not "nothing rented"."""
    assert rent.accounts(own_rehearsal) == ({}, [])
    Ledger(own_rehearsal, "vast").note("llm-course:x:1", usd_per_hour=1, began=time.time())
    assert rent.accounts(own_rehearsal) == ({}, ["vast cannot be asked: VAST_API_KEY is not set"])
    assert "at least 0 (vast cannot be asked" in rent.preflight(own_rehearsal)
    Ledger(own_rehearsal, "vast").file.write_text("[")
    ((), [told]) = rent.accounts(own_rehearsal)
    assert "rentals-vast.json is damaged" in told


def test_damaged_books_are_told(own_rehearsal):
    """A crash cut the rehearsal's state: its machines are not known to be gone."""
    own_rehearsal.rehearsal_home.mkdir()
    for text in ("", "{", "[]", '{"credit": 5}'):
        (own_rehearsal.rehearsal_home / "state.json").write_text(text)
        ((), [told]) = rent.accounts(own_rehearsal)
        assert told == "rehearsal cannot be asked: its books (state.json) are damaged"


def test_machines_without_our_label_are_counted_apart(own_rehearsal):
    """They may be the reader's own work: never ours to destroy, and no part of our sum."""
    provider = rent.connect(own_rehearsal)
    offer = provider.offers(rent.OfferFilter())[0]
    options = {"image": "i", "disk": 10, "label": "by hand", "ssh": True, "direct": True}
    made = provider.sdk.create_instance(int(offer.id), **options)
    assert provider.instances() == []
    assert rent.preflight(own_rehearsal).endswith(
        "your instances now: 0 (1 more on rehearsal without the course's label)"
    )
    rent.guard.end(own_rehearsal)
    assert [machine.label for machine in provider.everything()] == ["by hand"]
    provider.destroy(str(made["new_contract"]))


def test_what_ended_by_itself_stops_costing_at_the_next_look(own_rehearsal):
    """Else the night until the next rental would be charged to the budget."""
    provider, ledger = rent.connect(own_rehearsal), Ledger(own_rehearsal, "rehearsal")
    ledger.note("llm-course:x:1", usd_per_hour=1, began=time.time())
    rent.preflight(own_rehearsal)
    assert provider.everything() == [] and not ledger.open()


def test_waiting_ends_when_it_runs_and_lets_us_in():
    """Running without an address is not enough; each look is one line."""
    lines: list[str] = []
    up = machine("running", ssh_host="h", ssh_port=22)
    provider = walking(machine("creating"), machine("loading"), machine("running"), up)
    assert rent.wait_running(provider, "7", progress=lines.append) is up
    assert [line.partition(":")[0] for line in lines] == ["creating", "loading"] + 2 * ["running"]
    assert up.hardware == "2x RTX 4090"


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (None, "instance 7 is gone"),
        (machine("failed", detail="cuda>=13.0"), "is failed after 0 s: cuda>=13.0\nthe tail"),
        (machine("stopped"), "is stopped after 0 s: no message\nthe tail"),
        (machine("loading"), "is loading after 0 s"),
    ],
)
def test_waiting_does_not_go_on_for_ever(seen, told):
    """Gone, failed, stopped, or too slow: why, with the end of the log."""
    provider = walking(seen, log="\nthe tail\n")
    with pytest.raises(CourseError, match=re.escape(told)):
        rent.wait_running(provider, "7", timeout_s=0.05, progress=lambda line: None)


def test_records_become_a_table():
    """One row each, under the records' own names."""
    table = rent.frame([machine("running"), machine("failed")])
    assert list(table.status) == ["running", "failed"] and table.usd_per_hour.sum() == 1.0
