"""kill -9 at any moment of a rental leaves nothing that costs money.

``KILLS=200`` kills so many clients; test_walked.py stops a rental at each of its lines.
"""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from support.machines import Idle
from support.waiting import eventually

from helpers import rehearsal, rent
from helpers.errors import CourseError
from helpers.rent import guard

KILLS, AT_ONCE = int(os.environ.get("KILLS", "60")), 4


def client(settings, label: str) -> None:
    """What a reader's kernel does: rent, use a little, destroy, and again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    provider = rent.connect(settings)
    while True:
        try:
            # No model server: its start is not what is tested, and so many of them take long.
            with guard.rented(provider, Idle(), label, settings, progress=lambda line: None):
                time.sleep(0.3)
        except CourseError:
            time.sleep(0.2)  # another client took the last offer, or was killed holding it


@pytest.fixture
def market(settings, tmp_path, monkeypatch):
    """A rehearsal of its own, and settings with room for many rentals."""
    mine = settings.model_copy(
        update={
            "rehearsal_home": tmp_path / "rehearsal",
            "budget_usd": 1e6,
            "max_usd_per_hour": 100,
        }
    )
    monkeypatch.setenv("REHEARSAL_HOME", str(mine.rehearsal_home))
    rent.connect(mine)
    yield mine
    rehearsal.stop(mine)


def kill_clients(settings, kills: int) -> int:
    """Start clients and kill each at a random moment; returns how often one held a machine."""
    fork = multiprocessing.get_context("fork")  # a fresh interpreter would take a second each
    chance, provider, caught = random.Random(7), rent.connect(settings), 0
    for start in range(0, kills, AT_ONCE):
        batch = [
            fork.Process(target=client, args=(settings, f"kill-{start}-{n}"))
            for n in range(min(AT_ONCE, kills - start))
        ]
        for process in batch:
            process.start()
        for process in batch:
            time.sleep(chance.uniform(0, 0.6))
            os.kill(process.pid, signal.SIGKILL)
        for process in batch:
            process.join()
        left = provider.instances()
        caught += len(left)
        if start % 20 == 0:
            for instance in left:  # as `python -m helpers destroy` does
                guard.destroy(provider, instance.id)
    return caught


def test_kills_leave_nothing_after_destroy(market):
    """Some clients die holding a machine; destroy finds every one."""
    caught = kill_clients(market, KILLS)
    assert caught > KILLS / 10, "too few died in the middle of a rental to prove anything"
    subprocess.run([sys.executable, "-m", "helpers", "destroy"], check=True)
    assert rent.connect(market).instances() == []
    assert not rehearsal.holds_rentals(market)


def test_kills_leave_nothing_after_the_lifetime(market):
    """Nobody ever comes back: the machines end themselves."""
    short = market.model_copy(update={"lifetime_hours": 3 / 3600})
    assert kill_clients(short, 20) > 0
    provider, deadline = rent.connect(short), time.monotonic() + 60
    while provider.instances() and time.monotonic() < deadline:
        time.sleep(1)
    assert provider.instances() == []


def test_the_switch_works_with_every_process_of_ours_dead(market):
    """kill -9 of the kernel and of the marketplace: the rental ends by itself on its next boot."""
    short = market.model_copy(update={"lifetime_hours": 4 / 3600})
    guard.rent(rent.connect(short), Idle(), "switch", short, progress=print)
    os.kill(rehearsal.running(market).pid, signal.SIGKILL)
    time.sleep(5)
    again = rent.connect(market)  # the host is back, nobody asks about the rental
    assert eventually(lambda: again.instances() == [], 30)
