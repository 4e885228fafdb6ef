"""Measures on records made by hand, where the right answer can be worked out on paper."""

import json
import math
from dataclasses import replace

import pandas
import pytest
from support.made_runs import closed_loop

from helpers import measure
from helpers.errors import CourseError
from helpers.records import Record, Run


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


def test_interval_holds_the_value_and_is_repeatable():
    """The interval is around the value, narrow for even runs, and the same at each call."""
    found = measure.interval(closed_loop(), "ttft_p95_ms")
    assert (found.low, found.value, found.high) == pytest.approx((100, 100, 100))
    rate = measure.interval(closed_loop(), "output_tokens_per_s")
    assert rate.low <= rate.value <= rate.high
    assert rate == measure.interval(closed_loop(), "output_tokens_per_s")
    with pytest.raises(CourseError, match="no measure"):
        measure.interval(closed_loop(), "speed")


def test_compare_says_noise_when_it_is_noise():
    """The same settings twice differ by noise; twice the gap is a real difference."""
    same = measure.compare(closed_loop(), closed_loop(), "tpot_p50_ms")
    assert not same.real and "no difference beyond noise" in str(same)
    slower = measure.compare(closed_loop(), [closed_loop(gap_s=0.02)] * 3, "tpot_p50_ms")
    assert slower.real and slower.ratio.value == pytest.approx(2) and "+100%" in str(slower)


def test_nothing_is_compared_with_nothing():
    """A run without a token is no measure for another, and costs without end."""
    nothing = closed_loop(each=5, ttft_s=0.0, gap_s=0.0, failed=5)
    for index, record in enumerate(nothing.records):
        nothing.records[index] = replace(record, token_us=(), output_tokens=0)
    with pytest.raises(CourseError, match="is 0"):
        measure.compare(nothing, closed_loop())
    assert measure.usd_per_million_tokens(1, 0) == math.inf
    column = measure.usd_per_million_tokens(pandas.Series([1, 0.36]), pandas.Series([0, 1000]))
    assert column.to_list() == [math.inf, pytest.approx(0.1)]
    assert measure.capacity([nothing]).customers(10) == 0


def test_export_has_the_form_of_vllms_own():
    """Every key of a result that `vllm bench serve --save-detailed` 0.32 wrote, with our values."""
    run = closed_loop()
    run.header |= {"started_at": "2026-11-23T21:00:00+00:00"}
    run.header["endpoint"] |= {"model": "m"}
    result = json.loads(json.dumps(measure.to_vllm(run)))
    keys = (
        "backend burstiness completed date duration endpoint_type errors failed generated_texts "
        "input_lens itls label latencies max_concurrency mean_e2el_ms mean_itl_ms mean_tpot_ms "
        "mean_ttft_ms median_ttft_ms model_id num_prompts output_lens output_throughput "
        "p99_itl_ms p99_tpot_ms p99_ttft_ms request_goodput request_rate request_throughput "
        "start_times std_ttft_ms tokenizer_id total_input_tokens total_output_tokens "
        "total_token_throughput ttfts queue_times max_concurrent_requests max_output_tokens_per_s"
    )
    assert set(keys.split()) <= result.keys()
    assert result["completed"] == 40 and result["mean_ttft_ms"] == pytest.approx(100)
    assert result["max_concurrent_requests"] == 2
    assert result["output_throughput"] == pytest.approx(2 * 11 / 0.2)


def test_agreement_with_the_servers_counters():
    """Ours and the server's numbers stand side by side, over the same time."""
    run = closed_loop()
    run.samples = [
        {"t_s": 0.0, "output_tokens_total": 100.0, "ttft_s_sum": 1.0, "ttft_count": 5.0},
        {"t_s": 4.0, "output_tokens_total": 540.0, "ttft_s_sum": 4.8, "ttft_count": 45.0},
    ]
    table = measure.agreement(run)
    assert table.loc["output tokens", "ratio"] == 1
    assert table.loc["TTFT mean, ms", "server"] == pytest.approx(95)
    assert measure.agreement(closed_loop()).empty


def test_capacity_refuses_open_loops():
    """Users cannot be counted in an open loop."""
    run = closed_loop()
    run.header["arrivals"] = {"kind": "Ramp"}
    with pytest.raises(CourseError, match="level"):
        measure.capacity([run])
