"""Replicas by the hour and their cost: every number here was worked out by hand."""

import math
import random

import pytest

from helpers.errors import CourseError
from helpers.serve import Interruptible, Serverless, fleet

NIGHT_AND_DAY = [0.0] * 8 + [10.0] * 16
SECONDS = Serverless(usd_per_hour=0.5, cold_start_s=180, idle_s=600)


def test_replicas_by_the_hour():
    """ceil(load x 1.2 / 4), at least one: what does not divide evenly needs one more."""
    plan = fleet([0, 1, 3.3, 3.4, 10] + [0] * 19, 4, usd_per_hour=0.4, headroom=0.2)
    assert list(plan.hours.replicas[:6]) == [1, 1, 1, 2, 3, 1]
    assert list(plan.hours.index) == list(range(24))
    assert plan.costs.loc["peak all day", "replica_hours"] == 3 * 24
    assert plan.costs.loc["by the hour", "replica_hours"] == 21 + 1 + 2 + 3 - 0
    assert plan.costs.loc["by the hour", "usd_per_day"] == pytest.approx(27 * 0.4)
    assert plan.costs.loc["by the hour", "usd_per_month"] == pytest.approx(30 * 27 * 0.4)


def test_an_exact_fit_needs_no_further_replica():
    """0.1 + 0.2 is not 0.3: rounding noise must not rent a machine."""
    plan = fleet([1.2] * 24, 0.4, usd_per_hour=1, headroom=0)
    assert set(plan.hours.replicas) == {3}


def test_starting_a_replica_is_paid():
    """Two replicas more at 8:00, ready after half an hour, cost an hour in all."""
    plan = fleet(NIGHT_AND_DAY, 4, usd_per_hour=1, headroom=0, start_s=1800)
    assert plan.costs.loc["by the hour", "replica_hours"] == 8 * 1 + 16 * 3 + 2 * 0.5


def test_interruptible_replicas_make_up_for_those_that_are_gone():
    """Taken every 5 h and gone for 20 min, each is there 15 of 16 parts: 3 of them need a 4th.

    The three that are added in the morning start for 20 minutes each, an hour in all.
    """
    bid = Interruptible(usd_per_hour=0.2, interruptions_per_hour=0.2, replace_s=1200)
    assert bid.available == pytest.approx(15 / 16)
    plan = fleet([0] * 8 + [12] * 16, 4, usd_per_hour=1, interruptible=bid, headroom=0)
    assert list(plan.hours.interruptible) == [1] * 8 + [4] * 16
    row = plan.costs.loc["interruptible"]
    assert row.replica_hours == pytest.approx(8 * 1 + 16 * 4 + 1)
    assert row.usd_per_day == pytest.approx(73 * 0.2)
    assert row.interruptions == pytest.approx(72 * 15 / 16 * 0.2)


def test_serverless_scales_to_zero_and_pays_for_cold_starts():
    """Nothing at night; at 8:00 three workers load for three minutes each, then work 16 hours."""
    plan = fleet(NIGHT_AND_DAY, 4, usd_per_hour=0.5, serverless=SECONDS, headroom=0)
    assert list(plan.hours.serverless) == [0] * 8 + [3] * 16
    row = plan.costs.loc["serverless"]
    assert row.replica_hours == pytest.approx(16 * 3 + 3 * 0.05)
    assert row.cold_requests == 1 + 10 * 180  # of the first request, and of those behind it
    assert plan.costs.loc["peak all day", "usd_per_day"] == 36


def test_the_first_request_after_a_pause_waits():
    """Whatever the rate is: the first request, and those behind it until the worker is ready."""
    for load in (1, 20):
        plan = fleet([0] * 8 + [load] * 16, 2, usd_per_hour=1, serverless=SECONDS, headroom=0)
        assert plan.costs.loc["serverless", "cold_requests"] == pytest.approx(1 + load * 180)
    asleep = fleet([0] * 24, 2, usd_per_hour=1, serverless=SECONDS)
    assert asleep.costs.loc["serverless", "cold_requests"] == 0


def test_few_requests_keep_a_worker_awake_for_part_of_the_time():
    """Six an hour, ended after ten idle minutes: cycle 600 + 180 + 600 (e - 1) seconds."""
    up, cycle = 180 + 600 * (math.e - 1), 600 * math.e + 180
    part, cold = SECONDS.one_worker(1 / 600)
    assert part == pytest.approx(up / cycle)
    assert cold == pytest.approx((1 + 180 / 600) * 600 / cycle)
    plan = fleet([1 / 600] * 24, 4, usd_per_hour=0.5, serverless=SECONDS)
    assert plan.costs.loc["serverless", "replica_hours"] == pytest.approx(24 * up / cycle)
    assert plan.costs.loc["serverless", "cold_requests"] == pytest.approx(24 * 6 * cold)


def test_that_formula_is_what_a_simulation_gives():
    """A formula from a book can be copied wrong: a million seconds of random arrivals decide."""
    chance = random.Random(1)
    now = end = 0.0
    ready, up, cold, count = 0.0, 0.0, 0, 0
    while now < 3_000_000:
        now += chance.expovariate(1 / 600)
        count += 1
        if now > end:  # no worker: this one waits for the start
            cold, ready = cold + 1, now + 180
            up, end = up + 180 + 600, ready + 600
        elif now < ready:  # it is starting: wait with the others
            cold += 1
        else:
            up, end = up + now + 600 - end, now + 600
    part, share = SECONDS.one_worker(1 / 600)
    assert up / now == pytest.approx(part, rel=0.03)
    assert cold / count == pytest.approx(share, rel=0.05)


@pytest.mark.parametrize("rate", [0, 1e-12, 1e-4, 1, 1e6])
def test_one_worker_stays_within_bounds(rate):
    """From no request at all to a million a second: parts are parts."""
    part, cold = SECONDS.one_worker(rate)
    assert 0 <= part <= 1 and 0 <= cold <= 1 + 1e-9


def test_a_day_without_traffic():
    """An idle service costs its minimum, and serverless nothing; nothing is divided by zero."""
    plan = fleet([0] * 24, 4, usd_per_hour=0.5, serverless=SECONDS)
    assert plan.costs.usd_per_day.to_dict() == {
        "peak all day": 12, "by the hour": 12, "serverless": 0
    }  # fmt: skip
    assert plan.costs.loc["serverless", "cold_requests"] == 0
    off = fleet([0] * 24, 4, usd_per_hour=0.5, minimum=0)
    assert (off.costs.usd_per_day == 0).all() and "0 to 0 replicas" in str(off)


@pytest.mark.parametrize(
    ("traffic", "capacity", "told"),
    [
        ([1] * 24, 0, "make no fleet"),
        ([1] * 24, float("nan"), "make no fleet"),
        ([1] * 24, -1, "make no fleet"),
        ([1] * 23, 4, "not a day's curve"),
        ([1] * 23 + [-1], 4, "not a day's curve"),
        ([1] * 23 + [float("nan")], 4, "not a day's curve"),
    ],
)
def test_inputs_that_make_no_sense(traffic, capacity, told):
    """A capacity of 0 is what an unmet objective gives: it must not become a division."""
    with pytest.raises(CourseError, match=told):
        fleet(traffic, capacity, usd_per_hour=1)
