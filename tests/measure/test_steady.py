"""The recipe, held against a server in virtual time whose truth is known."""

import os
from dataclasses import replace

import numpy as np
import pytest
from support.made_runs import closed_loop, queue
from support.virtual_gpu import VirtualGPU

from helpers import measure
from helpers.errors import CourseError
from helpers.load.deciding import EARLY, LOOKS
from helpers.records import Run

RUNS = int(os.environ.get("SIMULATED_RUNS", "6"))  # of each case; 112 make the 1,000 of a claim
SETTINGS = {
    "small GPU": (VirtualGPU(a=14, b=0.35, prefill=5000, seqs=96, kv=120_000), 48),
    "large GPU": (VirtualGPU(a=8, b=0.11, prefill=9000), 136),
    "long prompts": (VirtualGPU(a=20, b=0.05, prefill=20_000, seqs=256, prompt=800, out=200), 96),
}
MEASURES = ("output_tokens_per_s", "ttft_p95_ms", "tpot_p95_ms")
CASES = [(name, cv) for name in SETTINGS for cv in (0.0, 0.5, 1.0)]


def played(name, cv, users, answers, seed):
    """A run of so many answer times after its start, as a sweep would make it."""
    gpu = replace(SETTINGS[name][0], cv=cv)
    answer_s = gpu.answer_s(users)
    return gpu.play(users, (2 + answers) * answer_s, spread_s=answer_s, seed=seed)


@pytest.fixture(scope="module")
def truth():
    """Each measure of each case over 1,200 s."""
    found = {}
    for name, cv in CASES:
        gpu, users = SETTINGS[name]
        long = replace(gpu, cv=cv).play(users, 1200, spread_s=gpu.answer_s(users), seed=10**6)
        found[name, cv] = {each: measure.interval(long, each).value for each in MEASURES}
    return found


def test_short_runs_tell_the_truth(truth):
    """Throughput is right on average, and intervals hold the truth as often as they should."""
    ratios, held = [], {each: [] for each in MEASURES}
    for name, cv in CASES:
        for seed in range(RUNS):
            run = played(name, cv, SETTINGS[name][1], LOOKS[-1], seed)
            for each in MEASURES:
                found, true = measure.interval(run, each), truth[name, cv][each]
                held[each].append(found.low <= true <= found.high)
                if each == "output_tokens_per_s":
                    ratios.append(found.value / true)
    share = {each: np.mean(inside) for each, inside in held.items()}
    print(f"\n{len(ratios)} runs: throughput {np.mean(ratios):.4f} of the truth, held {share}")
    assert np.mean(ratios) == pytest.approx(1, abs=0.01)
    chance = 2 * (0.1 / len(ratios)) ** 0.5  # of a small sample
    for each, least in zip(MEASURES, (0.92, 0.90, 0.84), strict=True):
        assert share[each] > least - chance, each


def test_verdicts_are_right_or_withheld(truth):
    """At 0.9 and 1.1 of the capacity no run says the opposite, after however many looks."""
    wrong = count = 0
    looks = [look for look in LOOKS if look >= EARLY]
    for name, cv in CASES:
        limits = {each: truth[name, cv][each] for each in MEASURES}
        by_token = measure.Objective(ttft_ms=None, tpot_ms=limits["tpot_p95_ms"])
        by_first = measure.Objective(ttft_ms=limits["ttft_p95_ms"], tpot_ms=None)
        for share, opposite in ((0.9, "missed"), (1.1, "kept")):
            for seed in range(max(1, RUNS // 3)):
                users = round(share * SETTINGS[name][1])
                looked = [played(name, cv, users, at, seed) for at in looks]
                for objective in (by_token, by_first):
                    said = [measure.verdict(run, objective) for run in looked]
                    first = next((one for one in said if one != "undecided"), "undecided")
                    wrong, count = wrong + (first == opposite), count + 1
    print(f"\n{wrong} of {count} verdicts wrong")
    assert wrong <= max(1, count / 100)


def test_a_run_that_began_at_once_is_not_taken_for_steady():
    """All prompts queue at first: what README's users saw as throughput was that."""
    gpu = VirtualGPU(a=8, b=0.11, prefill=9000, cv=0.5)
    run = gpu.play(128, 4 * gpu.answer_s(128), spread_s=0.128)
    begin, end = measure.window(run)
    assert gpu.answer_s(128) / 2 < begin < end <= run.records[-1].end_s
    true = measure.interval(gpu.play(128, 400, spread_s=gpu.answer_s(128)), "output_tokens_per_s")
    assert measure.interval(run, "output_tokens_per_s").value == pytest.approx(true.value, rel=0.04)


def test_the_window_holds_full_load_alone():
    """It begins an answer after the last user did, and ends when the first stops asking."""
    run = closed_loop(users=4)
    late = [replace(r, sent_s=r.sent_s + r.user, end_s=r.end_s + r.user) for r in run.records]
    assert measure.window(Run(run.header, late, ends=run.ends)) == pytest.approx((3.2, 4.0))
    assert measure.is_steady(Run(run.header, late, ends=run.ends))
    few = [record for record in late if record.user != 1 or record.sent_s < 1.1]
    assert not measure.is_steady(Run(run.header, few, ends=run.ends))  # one user was missing
    short = closed_loop(each=1)
    assert measure.window(short) == pytest.approx((0, 0.2)) and not measure.is_steady(short)


def test_an_open_loop_counts_from_its_second_answer():
    """Until its last request came; a queue that grows is not steady."""
    begin, end = measure.window(queue(20))
    assert 0.05 < begin < 0.3 and 19 < end < 20 and measure.is_steady(queue(20))


def test_a_server_that_slows_down_is_not_steady():
    """Half the rate in the second half: MSER-5 wants the first one left out."""
    run = closed_loop(users=2, each=60)
    assert measure.is_steady(run)
    for record in run.records:
        if record.sent_s < 5:
            object.__setattr__(record, "output_tokens", 5)
    assert not measure.is_steady(run)


def test_interval_holds_the_value():
    """Narrow for even runs, endless where there is too little; of nothing else."""
    found = measure.interval(closed_loop(), "ttft_p95_ms")
    assert (found.low, found.value, found.high) == pytest.approx((99, 100, 101))
    few = measure.interval(closed_loop(each=2), "ttft_p95_ms")
    assert (few.low, few.value, few.high) == (0, pytest.approx(100), np.inf)
    rate = measure.interval(closed_loop(), "output_tokens_per_s")
    assert rate.low <= rate.value <= rate.high
    with pytest.raises(CourseError, match="no measure"):
        measure.interval(closed_loop(), "speed")


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
