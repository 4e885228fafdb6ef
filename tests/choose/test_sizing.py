"""Sizing: published start-up logs, file sizes and speeds must come out of the formulas."""

from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.choose import gpus, models, prices, sizing
from helpers.errors import CourseError

GIB = 2**30
MISTRAL = models.shape("Mistral-7B-Instruct-v0.3")
MISTRAL_AWQ = models.shape("solidrust/Mistral-7B-Instruct-v0.3-AWQ")


@pytest.mark.parametrize(
    ("total", "utilization", "weights", "rest", "kv_gib"),
    [
        (39.50, 0.90, 14.96, 9.37 + 0.10, 11.12),  # vLLM issue 12330: Llama-3-8B, A100 40GB
        (23.58, 0.90, 14.99, 17.06 - 14.99 + 0.35, 3.81),  # issue 10517: Llama-3.1-8B, RTX 3090
        (79.22, 0.90, 14.96, 1.26 + 1.79, 53.29),  # pull request 10511: Llama-3-8B, 80 GB
    ],
)
def test_published_start_up_logs(total, utilization, weights, rest, kv_gib):
    """If this breaks, the course promises users that do not fit (or turns away those that do)."""
    kv = sizing.kv_cache_gib(total, weights, rest, utilization)
    assert kv == pytest.approx(kv_gib, abs=0.011)  # the logs round each term to 0.01


@pytest.mark.parametrize(
    ("kv_gib", "tokens", "context", "concurrency"),
    [
        (11.12, 91_095, 8192, 11.12),  # issue 12330
        (3.81, 1952 * 16, 20_000, 1.56),  # issue 10517: 1,952 blocks of 16 tokens
    ],
)
def test_published_concurrency(kv_gib, tokens, context, concurrency):
    """What the same logs say of tokens, and of how many sequences fit."""
    per_token = models.shape("Llama-3.1-8B-Instruct").kv_bytes_per_token()
    assert kv_gib * GIB / per_token == pytest.approx(tokens, rel=2e-3)
    assert tokens / context == pytest.approx(concurrency, abs=0.005)


def test_start_up_log_through_memory():
    """The same log through the function the notebooks call: 91,095 tokens and 11.12x."""
    a100 = sizing.Gpu(
        name="A100 40GB",
        count=1,
        usable_gib=39.50,
        bandwidth_gb_s=1555,
        fp16_tflops=312,
        fp8_tflops=312,
    )
    llama = models.shape("Llama-3.1-8B-Instruct")
    split = sizing.memory(llama, a100, utilization=0.90, rest_gib=9.37 + 0.10)
    assert split.weights_gib == pytest.approx(14.96, abs=0.01)
    assert split.kv_tokens == pytest.approx(91_095, rel=1e-3)
    assert split.sequences(8192) == pytest.approx(11.12, abs=0.01)


def test_published_measurements_lie_under_the_bound_and_near_the_expectation():
    """The roofline must bound what was measured, and the documented factor must describe it."""
    table = sizing.measurements()
    assert (table.of_bound < 1).all(), table[table.of_bound >= 1]
    near = table[table.error.abs() <= 0.35]
    assert len(near) >= 8
    far = table.drop(near.index)
    assert far.note.str.len().gt(0).all(), "a run that is far off must say why"
    single = table[table.users == 1].of_bound
    assert single.between(0.50, 0.85).all()  # what EFFICIENCY's docstring says


def test_a_t4_cannot_hold_mistral_in_fp16_but_holds_it_in_awq():
    """The course's first question."""
    t4 = sizing.gpu("T4")
    assert sizing.memory(MISTRAL, t4).kv_tokens == 0
    assert sizing.memory(MISTRAL_AWQ, t4).sequences(8192) > 5


@pytest.mark.parametrize(
    "spelled", ["RTX_4090", "rtx 4090", "NVIDIA GeForce RTX 4090", "RTX4090", "RTX 4090"]
)
def test_a_gpu_in_each_providers_spelling(spelled):
    """Vast's command line, RunPod, gpuhunt: the same card."""
    assert sizing.gpu(spelled).name == "RTX 4090"
    assert sizing.gpu("NVIDIA A100-SXM4-80GB").name == "A100 80GB SXM"
    assert sizing.gpu(f"2x {spelled}") == sizing.gpu(spelled, 2) == sizing.gpu("2x RTX 4090")


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 40GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("H100 PCIE", "H100 PCIe"),
        ("NVIDIA H200", "H200 SXM"),
        ("Tesla T4", "T4"),
        ("RTX 6000Ada", "RTX 6000 Ada"),
        ("A10", "A10"),
    ],
)
def test_more_spellings(spelled, name):
    """As RunPod's identifiers, Vast's lists and the driver have them."""
    assert sizing.gpu(spelled).name == name


@pytest.mark.parametrize(
    ("spelled", "names"),
    [
        ("1x A100 SXM4", ["A100 40GB", "A100 80GB SXM"]),
        ("A100 PCIE", ["A100 40GB", "A100 80GB PCIe"]),
        ("RTX 4060 Ti", ["RTX 4060 Ti 16GB"]),
        ("L40", ["L40"]),
        ("H100 SXM", ["H100 SXM"]),
        ("H200 NVL", []),
        ("", []),
    ],
)
def test_which_prices_are_of_that_gpu(spelled, names):
    """Of one whose memory nobody tells there are several, and none of them is taken for it."""
    assert gpus.find(spelled, {*prices.offers(live=False).gpu}) == names
    assert gpus.find("L40", {"L40S"}) == [], "another GPU, not another spelling"
    if len(names) > 1:
        with pytest.raises(CourseError, match=f"name one of {', '.join(names)}"):
            sizing.gpu(spelled)


def test_layers_with_a_window_or_a_state_fit_more_sequences():
    """The cache holds what each layer keeps at that length, not what the last token added."""
    a100 = sizing.gpu("A100 80GB SXM")
    windowed = replace(MISTRAL, layers=tuple(replace(one, window=4096) for one in MISTRAL.layers))
    full, bounded = sizing.memory(MISTRAL, a100), sizing.memory(windowed, a100)
    assert bounded.sequences(4096) == full.sequences(4096)
    assert bounded.sequences(32_768) == pytest.approx(8 * full.sequences(32_768))
    state = replace(MISTRAL, layers=tuple(replace(one, kv=0, state=512) for one in MISTRAL.layers))
    many = sizing.memory(state, a100)
    assert many.sequences(100) == many.sequences(30_000) > full.sequences(100)
    faster = sizing.decode_step_s(windowed, a100, batch=8, context=30_000)
    assert faster < sizing.decode_step_s(MISTRAL, a100, batch=8, context=30_000)
    assert sizing.prefill_s(windowed, a100, 30_000) < sizing.prefill_s(MISTRAL, a100, 30_000)


def test_a_gpu_without_published_figures_is_refused():
    """None are made up."""
    with pytest.raises(CourseError, match=r"GTX 970 is not in assets/gpus\.csv"):
        sizing.gpu("GTX 970")


@settings(deadline=None)  # a busy machine is no failure
@given(users=st.integers(1, 512), context=st.integers(300, 32_768))
def test_more_users_never_slow_the_server_nor_speed_up_a_user(users, context):
    """The shape of every capacity plot: throughput rises with users, each stream slows."""
    a100 = sizing.gpu("A100 80GB SXM")
    step = partial(sizing.decode_step_s, MISTRAL_AWQ, a100, context=context)
    assert step(users + 1) >= step(users)
    assert (users + 1) / step(users + 1) >= users / step(users) * (1 - 1e-9)


def test_the_cheapest_come_first_and_the_rest_have_reasons():
    """The answer of notebook 00: what to rent, and why not the cheaper ones."""
    offers = prices.offers(live=False)
    load = {"users": 32, "context": 4096, "min_tokens_per_s": 15.0}
    table = sizing.rank(offers, MISTRAL_AWQ, **load)
    assert len(table) == len(offers)
    fitting = table[table.reason == ""]
    assert len(fitting) and fitting.usd_per_hour.is_monotonic_increasing
    assert fitting.sequences.ge(32).all() and fitting.user_tokens_per_s.ge(15).all()
    assert table.index[table.reason == ""].max() == len(fitting) - 1
    reasons = table.set_index("instance_type").reason
    assert reasons["g4dn.xlarge"].startswith("KV cache holds")
    assert reasons["1x-RTX_4060_Ti-32-65536"].startswith("no published specification")
    fp16 = sizing.rank(offers, MISTRAL, **load).set_index("instance_type").reason
    assert "no KV cache" in fp16["g4dn.xlarge"]
    slow = sizing.rank(offers, MISTRAL_AWQ, **(load | {"min_tokens_per_s": 1e4}))
    assert slow.reason.str.contains("tokens/s a user").any() and not (slow.reason == "").any()
    assert sizing.rank(offers, MISTRAL_AWQ, users=1, context=10**6).reason.str.len().gt(0).all()


def runs(gpu="L4", share=0.5, **changed):
    """Runs of Mistral in AWQ that reach a known share of the bound: a number, or one for each."""
    users = [1, 8, 32]
    bounds = [sizing.tokens_per_s(MISTRAL_AWQ, sizing.gpu(gpu), n, 500, 100) for n in users]
    asked = {"gpu": gpu, "model": MISTRAL_AWQ.name, "precision": "awq", "users": users}
    asked |= {"prompt_tokens": 500, "output_tokens": 100}
    table = pd.DataFrame(asked).assign(tokens_per_s=bounds)
    table["tokens_per_s"] *= share
    return table.assign(**changed)


def test_a_known_efficiency_comes_back():
    """Of runs made by the formula, exactly, also where it falls with the users."""
    one = sizing.efficiency(runs(share=0.5))
    assert one.to_list() == pytest.approx([0.5] * 3)
    falling = sizing.efficiency(runs(share=[0.8, 0.6, 0.5]))
    assert falling.to_list() == pytest.approx([0.8, 0.6, 0.5])
    assert falling.index.is_monotonic_increasing and 0 < falling.index[0] < falling.index[-1] < 1
    again = sizing.measurements(runs(share=0.7), falling)
    assert again.expected.to_list() == pytest.approx([*(again.bound * [0.8, 0.6, 0.5])])
    twice = sizing.efficiency(pd.concat([runs(share=share) for share in (0.4, 0.5, 0.9)]))
    assert twice.to_list() == pytest.approx([0.5] * 3), "of equal runs the median counts"
    single = runs(users=1, share=0.6).head(1)
    [only] = sizing.efficiency(single)
    assert sizing.measurements(runs("A100 40GB"), sizing.efficiency(single)).of_bound.size == 3
    assert only == pytest.approx(0.6)


def test_between_runs_it_lies_between_and_beyond_them_as_in_the_last():
    """A GPU that bends elsewhere is nowhere given a share that no run reached."""
    falling = sizing.efficiency(runs(share=[0.8, 0.6, 0.5]))
    other = sizing.measurements(runs("A100 40GB", users=[1, 4, 400]), falling)
    shares = other.expected / other.bound
    assert other.to_bend.iloc[-1] > falling.index[-1] and shares.iloc[-1] == pytest.approx(0.5)
    assert 0.5 < shares.iloc[1] < 0.8


def test_what_one_gpu_shows_moves_the_prediction_of_the_others():
    """By the same factor: a slow program is slow everywhere."""
    offers = prices.offers(live=False)
    offers = offers[offers.gpu.isin(["L4", "RTX 4090"])]
    load = {"users": 8, "context": 2000}
    half = sizing.rank(offers, MISTRAL_AWQ, **load, efficiency=sizing.efficiency(runs(share=0.35)))
    fixed = sizing.rank(offers, MISTRAL_AWQ, **load)
    assert fixed.user_tokens_per_s.to_list() == pytest.approx([*2 * half.user_tokens_per_s])
    told = sizing.measurements(runs("RTX 4090"), sizing.efficiency(runs("L4", share=0.35)))
    assert told.expected.to_list() == pytest.approx([*0.35 * told.bound])


def test_a_better_program_lets_an_offer_pass_that_failed():
    """And the reason of one that fails has the speed that was expected of it."""
    offers = prices.offers(live=False)
    offers = offers[(offers.gpu == "L4") & (offers.gpu_count == 1)]
    speed = sizing.rank(offers, MISTRAL_AWQ, users=8, context=2000).user_tokens_per_s.iloc[0]
    load = {"users": 8, "context": 2000, "min_tokens_per_s": 1.1 * speed}
    failed = sizing.rank(offers, MISTRAL_AWQ, **load)
    assert failed.reason.str.startswith(f"{speed:.0f} tokens/s a user").all()
    assert (sizing.rank(offers, MISTRAL_AWQ, **load, efficiency=0.8).reason == "").all()
    measured = sizing.efficiency(runs(share=0.8))
    assert (sizing.rank(offers, MISTRAL_AWQ, **load, efficiency=measured).reason == "").all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (runs().head(0), "rented GPU"),
        (pd.DataFrame(), "rented GPU"),
        (runs(users=0), "above 0"),
        (runs(tokens_per_s=[10, 20, float("nan")]), "above 0"),
        (runs().drop(columns="tokens_per_s"), "tokens_per_s"),
        (runs().drop(columns="precision"), "precision"),
        (runs(users="8"), "above 0"),
        (runs().assign(gpu="GTX 970"), "gpus.csv"),
        (runs().assign(gpu=float("nan")), "gpus.csv"),
        (runs(model="gpt-5"), "gpt-5"),
        (runs(share=[0.5, 0.5, 1.3]), "model, precision"),
        (runs(tokens_per_s=float("inf")), "model, precision"),
    ],
    ids=[
        "none", "nothing", "no users", "not a number", "no rate", "no precision", "text",
        "unknown GPU", "no GPU", "unknown model", "beyond the bound", "endless",
    ],
)  # fmt: skip
def test_runs_that_say_nothing_are_refused(wrong, said):
    """With a sentence, and not with a number made of them."""
    with pytest.raises(CourseError) as refused:
        sizing.efficiency(wrong)
    assert said in str(refused.value)


def test_published_runs_of_another_gpu_tell_what_the_notebook_says_of_them():
    """In FP16 the method carries from GPU to GPU; of AWQ the two kinds of program differ."""
    errors = {"fp16": [], "awq": []}
    table = sizing.measurements()
    for (name, kind), known in table.groupby(["gpu", "precision"]):
        others = table[(table.gpu != name) & (table.precision == kind)]
        errors[kind] += [*sizing.measurements(others, sizing.efficiency(known)).error.abs()]
    assert len(errors["fp16"]) == 36 and max(errors["fp16"]) < 0.25
    assert len(errors["awq"]) == 6 and 0.25 < max(errors["awq"]) < 0.5
