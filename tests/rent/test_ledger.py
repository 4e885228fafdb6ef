"""What was rented and spent, in a file that outlives kernels and crashes."""

import threading
import time
from types import SimpleNamespace

import pytest

from helpers.errors import CourseError
from helpers.rent.ledger import Ledger


@pytest.fixture
def ledger(settings, tmp_path):
    """An empty ledger."""
    return Ledger(settings.model_copy(update={"rehearsal_home": tmp_path / "new"}), "vast")


def test_a_rental_counts_from_its_note_to_its_end(ledger):
    """An hour at half a dollar is half a dollar, and stays that."""
    hour_ago = time.time() - 3600
    ledger.note("a", usd_per_hour=0.5, began=hour_ago)
    assert ledger.open() and ledger.spent_usd() == pytest.approx(0.5, abs=0.01)
    ledger.note("a", ended=hour_ago + 1800)
    assert not ledger.open() and ledger.spent_usd() == pytest.approx(0.25)


def test_the_provider_knows_better(ledger):
    """Gone is gone, whoever ended it; what is there was wrongly taken for gone."""
    for name in ("gone", "there"):
        ledger.note(name, usd_per_hour=1, began=time.time())
    ledger.compare([SimpleNamespace(id="7", label="there")])
    assert [ledger.read()[name]["ended"] is None for name in ("gone", "there")] == [False, True]
    ledger.note("there", ended=time.time())
    ledger.compare([SimpleNamespace(id="7", label="there")])
    assert ledger.open()


def test_two_notebooks_at_once_lose_no_note(ledger):
    """Each writes the whole file."""
    threads = [
        threading.Thread(target=ledger.note, args=(f"{n}",), kwargs={"usd_per_hour": 1, "began": n})
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.read()) == 20


def test_a_damaged_file_is_told(ledger):
    """Nobody knows what was spent: not zero."""
    ledger.note("a", usd_per_hour=1, began=0)
    ledger.file.write_text('{"a": ')
    for ask in (ledger.spent_usd, ledger.open):
        with pytest.raises(CourseError, match="is damaged"):
            ask()
