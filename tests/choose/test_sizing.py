"""Sizing: published start-up logs, file sizes and speeds must come out of the formulas."""

from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.choose import models, prices, sizing
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
    with pytest.raises(CourseError, match="did you mean A100 80GB SXM"):
        sizing.gpu("A100 SXM4")


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
