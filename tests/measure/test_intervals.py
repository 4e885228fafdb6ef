"""How sure a number is, and when two of them differ."""

from dataclasses import replace

import pytest
from support.made_runs import closed_loop

from helpers import measure
from helpers.errors import CourseError


def test_compare_says_noise_when_it_is_noise():
    """The same settings twice differ by noise; twice the gap is a real difference."""
    same = measure.compare(closed_loop(), closed_loop(), "tpot_p50_ms")
    assert not same.real and "no difference beyond noise" in str(same)
    slower = measure.compare(closed_loop(), closed_loop(gap_s=0.02), "tpot_p50_ms")
    assert slower.real and slower.ratio.value == pytest.approx(2) and "+100%" in str(slower)


def test_two_requests_prove_nothing():
    """They have no spread between them, which is not certainty."""
    one, other = closed_loop(users=1, each=1), closed_loop(users=1, each=1, ttft_s=0.2)
    difference = measure.compare(one, other, "ttft_p50_ms")
    assert not difference.real and "too few" in str(difference)


def test_nothing_is_compared_with_nothing():
    """A run without a token is no measure for another."""
    nothing = closed_loop(each=5, ttft_s=0.0, gap_s=0.0, failed=5)
    for index, record in enumerate(nothing.records):
        nothing.records[index] = replace(record, token_us=(), output_tokens=0)
    with pytest.raises(CourseError, match="is 0"):
        measure.compare(nothing, closed_loop())
