"""A timer finer than the event loop's, and the measure of how late it stamps."""

import asyncio
import time

import pytest
import uvloop

from helpers.load.client import eventloop
from helpers.load.client.eventloop import Alarm, LagProbe


@pytest.fixture
def loop():
    """One, closed afterwards."""
    made = uvloop.new_event_loop()
    yield made
    made.close()


@pytest.mark.parametrize("linux", [True, False])
def test_a_schedule_is_kept_within_the_millisecond(loop, linux, monkeypatch):
    """uvloop's timers tick in milliseconds; a request due in between must not wait for the tick."""
    monkeypatch.setattr(eventloop, "_LINUX", linux and eventloop._LINUX)

    async def main() -> list[float]:
        alarm, lates = Alarm(), []
        for _ in range(40):
            due = time.perf_counter() + 0.0024
            await alarm.until(due)
            lates.append(time.perf_counter() - due)
        await asyncio.wait_for(alarm.until(0), 1)  # long past
        return lates

    lates = sorted(loop.run_until_complete(main()))
    assert lates[0] >= 0 and lates[10] < 0.0006


def test_waiting_does_not_spin(loop):
    """A wait takes no processor time worth the name."""

    async def main() -> None:
        alarm = Alarm()
        await alarm.until(time.perf_counter() + 0.3)

    used = time.process_time()
    loop.run_until_complete(main())
    assert time.process_time() - used < 0.1


def test_the_lag_probe_sees_a_blocked_loop(loop):
    """A loop that is busy for 50 ms stamps late by as much, and says so."""
    lags: list[float] = []

    async def main() -> None:
        probe = LagProbe(lags)
        probe.send()
        await asyncio.sleep(0.01)
        probe.send()
        time.sleep(0.05)
        await asyncio.sleep(0.01)

    loop.run_until_complete(main())
    assert lags[0] < 0.04 and lags[1] >= 0.05
