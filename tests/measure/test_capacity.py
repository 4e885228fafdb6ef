"""How many customers at which promise: on runs where the answer is known, and on odd ones."""

import math
from dataclasses import replace

import pandas
import pytest
from support.made_runs import broken, closed_loop, queue

from helpers import measure
from helpers.errors import CourseError
from helpers.measure.capacity import crossing
from helpers.records import Run

PROMISE = measure.Objective(ttft_ms=2000, tpot_ms=None)


def test_capacity_lies_between_the_loads_that_were_measured():
    """4 users meet 50 ms a token, 8 do not: 5, read from the line between them, and 4 to 8."""
    runs = [closed_loop(users=u, gap_s=g) for u, g in ((1, 0.01), (4, 0.04), (8, 0.08))]
    found = measure.capacity(runs, measure.Objective(ttft_ms=500, tpot_ms=50))
    assert (found.load, found.low, found.high) == (5, 4, 8)
    assert found.e2e_s == pytest.approx(0.6, rel=0.01)  # between 0.5 and 0.9
    assert found.customers(think_time_s=5.4) == pytest.approx(5 * (5.4 + 0.6) / 0.6, abs=1)
    assert measure.capacity(runs, measure.Objective(ttft_ms=50)).load == 0
    found = measure.capacity(runs, measure.Objective(tpot_ms=100))
    assert (found.load, found.high) == (8, math.inf) and "or more" in str(found)


def test_a_load_on_the_edge_is_undecided():
    """Far from the limit a verdict is certain; close to it the answer says that it is not."""
    objective = measure.Objective(ttft_ms=None, tpot_ms=50)
    good, bad = (closed_loop(users=u, gap_s=g) for u, g in ((1, 0.01), (8, 0.08)))
    assert [measure.verdict(run, objective) for run in (good, bad)] == ["kept", "missed"]
    slow = closed_loop(users=4, each=60).records
    for number in (20, 21, 22, 100, 101, 102, 103, 104, 200, 201, 202):  # 5 %, here and there
        slow[number] = replace(slow[number], token_us=(0, 10**6))
    edge = Run(closed_loop(users=4).header, slow, ends=good.ends)
    assert measure.verdict(edge, objective) == "undecided"
    found = measure.capacity([good, edge, bad], objective)
    assert found.undecided == (4,) and "undecided at 4" in str(found)
    assert 1 <= found.low < 4 and found.high == 8


def test_the_answer_speaks_of_those_who_were_simulated():
    """Users who think in between are customers, and only so many of them ask at a time."""
    run = closed_loop(users=8)
    assert "8 users who ask again at once" in str(measure.capacity([run], PROMISE))
    run.header["arrivals"] |= {"think_time_s": 20.0}
    found = measure.capacity([run], PROMISE)
    assert "8 customers who think for 20 s" in str(found) and found.unit == "customers"
    assert found.customers(20) == 8


def test_goodput_counts_only_what_met_the_objective():
    """Requests that fail or are too slow are no goodput."""
    assert measure.goodput(closed_loop(), measure.Objective()) == pytest.approx(10, rel=0.1)
    assert measure.goodput(closed_loop(), measure.Objective(ttft_ms=50)) == 0


def test_a_server_that_falls_behind_has_no_capacity():
    """After 20 s at 60/s a server for 40/s still keeps a promise of several seconds."""
    loose = measure.Objective(ttft_ms=60_000, tpot_ms=None)
    runs = [queue(rate) for rate in (20, 30, 36, 60, 80)]
    found = measure.capacity(runs, loose)
    assert 36 <= found.load < 60 and (found.low, found.high) == (36, 60)
    assert all(measure.verdict(queue(60, seed=seed), loose) == "missed" for seed in range(20))
    kept = [measure.verdict(queue(4, seed=seed, service_s=0.2), loose) for seed in range(50)]
    assert kept.count("kept") >= 48  # chance alone must not look like a queue


def test_an_answer_without_a_token_misses_the_promise():
    """It came whole, but its first token never did."""
    run = closed_loop()
    silent = [replace(record, token_us=(), output_tokens=0) for record in run.records]
    assert measure.verdict(run, PROMISE) == "kept"
    assert measure.verdict(Run(run.header, silent, ends=run.ends), PROMISE) == "missed"


def test_repeats_and_stopped_runs():
    """One miss of three is a miss; a run that somebody stopped is no measurement, unasked."""
    good, bad = closed_loop(users=8), broken(closed_loop(users=8))
    found = measure.capacity([closed_loop(users=4), good, bad, good], PROMISE)
    assert (found.load, found.high) == (4, 8)
    stopped = closed_loop(users=16)
    stopped.ends = [stopped.ends[0] | {"ended": "interrupted"}]
    with pytest.raises(CourseError, match=r"16 users .* is no result"):
        measure.capacity([good, stopped], PROMISE)
    stopped.allow_partial = True
    assert measure.capacity([good, stopped], PROMISE).load == 16
    gone = broken(closed_loop(users=16))
    gone.ends = [gone.ends[0] | {"ended": "server gone"}]
    with pytest.raises(CourseError, match=r"the server was gone after 320 requests"):
        measure.capacity([good, gone], PROMISE)
    gone.allow_partial = True
    assert measure.capacity([good, gone], PROMISE).high == 16


def test_capacity_refuses_a_trace():
    """It has no single level of load."""
    run = closed_loop()
    run.header["arrivals"] = {"kind": "Replay", "times_s": [0.0, 1.0]}
    with pytest.raises(CourseError, match="level"):
        measure.capacity([run])


def test_nothing_carries_nobody_and_costs_without_end():
    """Every answer lost, or no token at all: capacity 0, and a price that is infinite."""
    assert measure.capacity([broken(closed_loop(each=5))]).customers(10) == 0
    assert measure.usd_per_million_tokens(1, 0) == math.inf
    column = measure.usd_per_million_tokens(pandas.Series([1, 0.36]), pandas.Series([0, 1000]))
    assert column.to_list() == [math.inf, pytest.approx(0.1)]


def test_a_line_leads_from_what_was_measured_to_what_was_not():
    """Between two loads, beyond the last, and nowhere in particular where it is flat."""
    kept = {4: 0.25, 8: 0.5}
    assert crossing({**kept, 32: 2.0}) == pytest.approx(16)
    assert crossing(kept) == 8 and crossing(kept, beyond=True) == pytest.approx(16)
    assert crossing({4: 0.01, 8: 0.01 + 1e-9}, beyond=True) > 1e9
    assert crossing({4: 0.5, 8: 0.4}, beyond=True) == math.inf
    assert crossing({4: 0.5, 8: math.inf}) == 4 and crossing({4: 1.1}) == 0


@pytest.mark.parametrize(
    ("a", "b", "room", "bends"),
    [(10, 0.5, 10**6, 180), (10, 0.5, 40, 30), (20, 0.01, 16, 14.3)],
    ids=["the curve alone", "the curve up to a room", "hardly a curve"],
)
def test_the_bend_is_where_nine_tenths_of_the_most_are_made(a, b, room, bends):
    """Of N / (a + b N), up to the number that the server takes at once."""
    runs = []
    for users in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        at_once = min(users, room)
        gap_s = (a + b * at_once) / 1e3 * users / at_once
        runs.append(closed_loop(users=users, gap_s=gap_s, ttft_s=gap_s))
        runs[-1].samples = [{"running": at_once, "waiting": users - at_once}] * 4
    found = measure.saturation(runs)
    assert found.users == pytest.approx(bends, rel=0.05)
    assert (found.alpha_ms, found.beta_ms) == pytest.approx((a, b), rel=0.1, abs=0.01)
    assert found.room == (room if room < 256 else math.inf)
