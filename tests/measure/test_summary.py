"""One run in numbers, on records made by hand, whose answers can be worked out on paper."""

import math

import pytest
from support.made_runs import closed_loop

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
