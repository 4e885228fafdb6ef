"""Measures on records made by hand, where the right answer can be worked out on paper."""

import math

import pytest

from helpers import measure
from helpers.errors import CourseError
from helpers.records import Record, Run


def closed_loop(users=2, each=20, ttft_s=0.1, gap_s=0.01, tokens=11, failed=0) -> Run:
    """A perfectly even closed loop: every request takes ttft_s + (tokens - 1) * gap_s."""
    length = ttft_s + (tokens - 1) * gap_s
    times = tuple(round((ttft_s + k * gap_s) * 1e6) for k in range(tokens))
    records = [
        Record(
            index=user + users * number,
            user=user,
            sent_s=number * length,
            end_s=(number + 1) * length,
            token_us=times,
            prompt_tokens=5,
            output_tokens=tokens,
            status=200,
            cause="timeout" if number < failed else "",
        )
        for number in range(each)
        for user in range(users)
    ]
    header = {
        "label": f"{users} users",
        "endpoint": {"title": "m, e on h"},
        "arrivals": {"kind": "ClosedLoop", "users": users},
    }
    return Run(header, records, ends=[{"ended": "complete", "lag_p99_ms": 0.1, "cpu_s": 0.1,
                                       "wall_s": 1.0}])  # fmt: skip


def test_summary_of_an_even_run():
    """Every number of an even run is what its making says."""
    numbers = measure.summary(closed_loop())
    assert numbers.steady and numbers.failed == 0 and numbers.output_tokens == 2 * 20 * 11
    assert numbers.ttft_p50_ms == pytest.approx(100) == numbers.ttft_p99_ms
    assert numbers.itl_p50_ms == pytest.approx(10) == numbers.tpot_p95_ms
    assert numbers.e2e_p50_s == pytest.approx(0.2)
    assert numbers.output_tokens_per_s == pytest.approx(2 * 11 / 0.2, rel=0.05)
    assert numbers.requests_per_s == pytest.approx(10, rel=0.1)
    assert not numbers.client_limited


def test_open_loop_latency_counts_from_the_schedule():
    """A request sent late by the client waited all the same."""
    late = Record(index=0, scheduled_s=1.0, sent_s=1.5, end_s=2.0, token_us=(100_000, 400_000),
                  output_tokens=2)  # fmt: skip
    assert late.ttft_s == pytest.approx(0.6) and late.e2e_s == pytest.approx(1.0)
    assert late.lag_s == pytest.approx(0.5) and late.tpot_s == pytest.approx(0.3)


def test_steady_window_leaves_the_warm_up_out():
    """Slow first requests do not count into the throughput."""
    run = closed_loop(each=40)
    for record in run.records[:8]:
        object.__setattr__(record, "token_us", record.token_us[:1])
        object.__setattr__(record, "output_tokens", 1)
    start, end = measure.steady_window(run)
    assert 0.7 <= start < 4 and end == pytest.approx(39 * 0.2)


def test_a_run_without_answers_is_all_failure():
    """Nothing finished: error rate one, latencies not a number, and no exception."""
    numbers = measure.summary(closed_loop(each=5, failed=5))
    assert numbers.error_rate == 1 and math.isnan(numbers.e2e_p50_s)


def test_capacity_is_the_last_run_before_the_first_miss():
    """4 users meet 50 ms a token, 8 do not: the capacity is 4, and 8 is told as the miss."""
    runs = [closed_loop(users=u, gap_s=g) for u, g in ((1, 0.01), (4, 0.04), (8, 0.08))]
    found = measure.capacity(runs, measure.Objective(ttft_ms=500, tpot_ms=50))
    assert (found.load, found.fails_at) == (4, 8)
    assert found.customers(think_time_s=4.5) == pytest.approx(4 * (4.5 + 0.5) / 0.5)
    assert measure.capacity(runs, measure.Objective(ttft_ms=50)).load == 0


def test_goodput_counts_only_what_met_the_objective():
    """Requests that fail or are too slow are no goodput."""
    assert measure.goodput(closed_loop(), measure.Objective()) == pytest.approx(10, rel=0.1)
    assert measure.goodput(closed_loop(), measure.Objective(ttft_ms=50)) == 0


def test_capacity_refuses_open_loops():
    """Users cannot be counted in an open loop."""
    run = closed_loop()
    run.header["arrivals"] = {"kind": "Ramp"}
    with pytest.raises(CourseError, match="level"):
        measure.capacity([run])
