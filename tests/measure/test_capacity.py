"""How many customers at which promise: on runs where the answer is known, and on odd ones."""

import math
from dataclasses import replace

import pandas
import pytest
from support.made_runs import broken, closed_loop, queue

from helpers import measure
from helpers.errors import CourseError
from helpers.records import Run

PROMISE = measure.Objective(ttft_ms=2000, tpot_ms=None)


def test_capacity_is_the_last_run_before_the_first_miss():
    """4 users meet 50 ms a token, 8 do not: the capacity is 4, and 8 is told as the miss."""
    runs = [closed_loop(users=u, gap_s=g) for u, g in ((1, 0.01), (4, 0.04), (8, 0.08))]
    found = measure.capacity(runs, measure.Objective(ttft_ms=500, tpot_ms=50))
    assert (found.load, found.fails_at) == (4, 8)
    assert found.customers(think_time_s=4.5) == pytest.approx(4 * (4.5 + 0.5) / 0.5)
    assert measure.capacity(runs, measure.Objective(ttft_ms=50)).load == 0


def test_capacity_tells_how_sure_it_is():
    """Far from the limit the verdicts are certain; close to it they are not."""
    objective = measure.Objective(ttft_ms=None, tpot_ms=50)
    runs = [closed_loop(users=u, gap_s=g) for u, g in ((1, 0.01), (4, 0.08))]
    assert measure.capacity(runs, objective).confidence == 1
    slow = closed_loop(users=1, each=210).records
    for number in range(5, len(slow), 21):  # one request in 21 is too slow: p95 is on the edge
        slow[number] = replace(slow[number], token_us=(0, 10**6))
    edge = Run(runs[0].header, slow, ends=runs[0].ends)
    assert 0.1 < measure.capacity([edge, runs[1]], objective).confidence < 0.95


def test_goodput_counts_only_what_met_the_objective():
    """Requests that fail or are too slow are no goodput."""
    assert measure.goodput(closed_loop(), measure.Objective()) == pytest.approx(10, rel=0.1)
    assert measure.goodput(closed_loop(), measure.Objective(ttft_ms=50)) == 0


def test_a_server_that_falls_behind_has_no_capacity():
    """After 20 s at 60/s a server for 40/s still keeps a promise of several seconds."""
    loose = measure.Objective(ttft_ms=60_000, tpot_ms=None)
    runs = [queue(rate) for rate in (20, 30, 36, 60, 80)]
    found = measure.capacity(runs, loose)
    assert (found.load, found.fails_at) == (36, 60)
    assert not any(measure.meets(queue(60, seed=seed), loose) for seed in range(20))
    kept = [measure.meets(queue(4, seed=seed, service_s=0.2), loose) for seed in range(50)]
    assert sum(kept) >= 48  # chance alone must not look like a queue


def test_an_answer_without_a_token_misses_the_promise():
    """It came whole, but its first token never did."""
    run = closed_loop()
    silent = [replace(record, token_us=(), output_tokens=0) for record in run.records]
    assert measure.meets(run, PROMISE)
    assert not measure.meets(Run(run.header, silent, ends=run.ends), PROMISE)


def test_repeats_and_stopped_runs():
    """One miss of three is a miss; a run that somebody stopped is no measurement, unasked."""
    good, bad = closed_loop(users=8), broken(closed_loop(users=8))
    found = measure.capacity([closed_loop(users=4), good, bad, good], PROMISE)
    assert (found.load, found.fails_at) == (4, 8)
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
    assert measure.capacity([good, gone], PROMISE).fails_at == 16


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
