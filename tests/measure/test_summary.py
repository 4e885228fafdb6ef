"""One run in numbers, on records made by hand, whose answers can be worked out on paper."""

import math
from dataclasses import replace

import numpy as np
import pytest
from support.made_runs import closed_loop, queue

from helpers import measure
from helpers.records import Record


def test_summary_of_an_even_run():
    """Every number of an even run is what its making says."""
    numbers = measure.summary(closed_loop())
    assert numbers.steady and numbers.failed == 0 and numbers.output_tokens == 2 * 20 * 11
    assert numbers.ttft_p50_ms == pytest.approx(100) == numbers.ttft_p99_ms
    assert numbers.itl_p50_ms == pytest.approx(10) == numbers.tpot_p95_ms
    assert numbers.e2e_p50_s == pytest.approx(0.2)
    assert numbers.output_tokens_per_s == pytest.approx(2 * 11 / 0.2, rel=0.05)
    assert numbers.requests_per_s == pytest.approx(10, rel=0.1)
    assert not numbers.client_limited and measure.most_at_once(closed_loop()) == 2


@pytest.mark.parametrize("each", [4, 5, 6, 9])
def test_answers_that_end_together_are_counted_right(each):
    """Counted by their ends, a whole group falls out of the window: a sixth too few of 48."""
    run = closed_loop(users=8, each=each)
    numbers, promise = measure.summary(run), measure.Objective(ttft_ms=500, tpot_ms=50)
    assert numbers.requests_per_s == pytest.approx(8 / 0.2, rel=0.06)
    assert numbers.requests_per_s == pytest.approx(numbers.output_tokens_per_s / 11)
    assert measure.goodput(run, promise) == pytest.approx(numbers.requests_per_s)


def test_open_loop_latency_counts_from_the_schedule():
    """A request sent late by the client waited all the same."""
    late = Record(index=0, scheduled_s=1.0, sent_s=1.5, end_s=2.0, token_us=(100_000, 400_000),
                  output_tokens=2)  # fmt: skip
    assert late.ttft_s == pytest.approx(0.6) and late.e2e_s == pytest.approx(1.0)
    assert late.lag_s == pytest.approx(0.5) and late.tpot_s == pytest.approx(0.3)


def test_a_run_without_answers_is_all_failure():
    """Nothing finished: error rate one, latencies not a number, and no exception."""
    numbers = measure.summary(closed_loop(each=5, failed=5))
    assert numbers.error_rate == 1 and math.isnan(numbers.e2e_p50_s)


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


def test_an_answer_without_a_token_has_no_time_to_compare():
    """It counts as an answer, and spoils no mean."""
    run = queue(8, seconds=5)
    run.records[0] = replace(run.records[0], token_us=(), output_tokens=0)
    run.samples = [{"t_s": t, "output_tokens_total": 100.0 * t, "ttft_count": 10.0 * t,
                    "ttft_s_sum": 1.0 * t, "itl_s_sum": 1.0 * t, "itl_count": 9.0 * t}
                   for t in (0.0, 5.0)]  # fmt: skip
    assert np.isfinite(measure.agreement(run)["client"]).all()
