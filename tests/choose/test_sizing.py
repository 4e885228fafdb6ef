"""Sizing: published start-up logs, file sizes and speeds must come out of the formulas."""

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.choose import models, prices, sizing
from helpers.errors import CourseError

GIB = 2**30
MISTRAL = models.shape("Mistral-7B-Instruct-v0.3")
MISTRAL_AWQ = models.shape("solidrust/Mistral-7B-Instruct-v0.3-AWQ")


@pytest.mark.parametrize(
    ("total", "utilization", "weights", "rest", "kv_gib", "tokens", "context", "concurrency"),
    [
        # vLLM issue 12330: Meta-Llama-3-8B on an A100 40GB
        (39.50, 0.90, 14.96, 9.37 + 0.10, 11.12, 91_095, 8192, 11.12),
        # vLLM issue 10517: Llama-3.1-8B on an RTX 3090, 1,952 blocks of 16 tokens
        (23.58, 0.90, 14.99, 17.06 - 14.99 + 0.35, 3.81, 1952 * 16, 20_000, 1.56),
        # vLLM pull request 10511: Meta-Llama-3-8B on an 80 GB GPU
        (79.22, 0.90, 14.96, 1.26 + 1.79, 53.29, None, None, None),
    ],
)
def test_published_start_up_logs(
    total, utilization, weights, rest, kv_gib, tokens, context, concurrency
):
    """If this breaks, the course promises users that do not fit (or turns away those that do)."""
    kv = sizing.kv_cache_gib(total, weights, rest, utilization)
    assert kv == pytest.approx(kv_gib, abs=0.011)  # the logs round each term to 0.01
    if tokens:
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


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("Mistral-7B-Instruct-v0.3", 14.50),
        ("Mistral-7B-Instruct-v0.3 AWQ", 4.16),  # listed size of the repository's weights
        ("Mistral-7B-Instruct-v0.2 AWQ", 4.15),
        ("Ministral-8B-Instruct-2410", 16.04),
        ("Mistral-Nemo-Instruct-2407", 24.5),
        ("Mistral-Small-3.2-24B-Instruct-2506", 47.14),
        ("Mixtral-8x7B-Instruct-v0.1", 93.41),
        ("Llama-3.1-8B-Instruct", 14.9595 * GIB / 1e9),  # vLLM: "Loading model weights took"
        ("SmolLM2-135M-Instruct", 0.27),
    ],
)
def test_published_weights(name, gigabytes):
    """Weights that come out wrong put the model on a GPU that cannot hold it."""
    assert models.shape(name).weights_gb() == pytest.approx(gigabytes, rel=0.005)


def test_published_weights_with_a_vision_tower():
    """FP8 and int4 uploads that carry 0.4 B of 16-bit vision weights: text part plus those."""
    vision_gb = 2 * 0.42
    assert models.shape("Ministral-3-3B-Instruct-2512").weights_gb() + vision_gb == pytest.approx(
        4.67, rel=0.01
    )
    small = models.shape("Mistral-Small-3.2-24B-Instruct-2506", "awq")
    assert small.weights_gb() + vision_gb == pytest.approx(15.1, rel=0.01)


def test_table_agrees_with_its_own_parameter_counts():
    """A typing error in a shape shows as a wrong parameter count."""
    for row in models.table().itertuples():
        counted = models.shape(row.model).params / 1e9
        assert counted == pytest.approx(row.params_b, rel=0.006), row.model


def test_published_measurements_lie_under_the_bound_and_near_the_expectation():
    """The roofline must bound what was measured, and the documented factor must describe it."""
    table = sizing.measurements()
    assert (table.of_bound < 1).all(), table[table.of_bound >= 1]
    near = table[table.error.abs() <= 0.35]
    assert len(near) >= 8
    far = table.drop(near.index)
    assert far.note.str.len().gt(0).all(), "a run that is far off must say why"
    single = table[table.users == 1].of_bound
    assert single.between(0.60, 0.90).all()  # what EFFICIENCY's docstring says


def test_a_t4_cannot_hold_mistral_in_fp16_but_holds_it_in_awq():
    """The course's first question."""
    t4 = sizing.gpu("T4")
    assert sizing.memory(MISTRAL, t4).kv_tokens == 0
    assert sizing.memory(MISTRAL_AWQ, t4).sequences(8192) > 5


def test_mixture_of_experts_reads_fewer_weights_at_small_batches():
    """One token of Mixtral reads two of eight experts; a large batch reads them all."""
    mixtral = models.shape("Mixtral-8x7B-Instruct-v0.1")
    assert mixtral.weights_gb(batch=1) == pytest.approx(2 * 12.9, rel=0.01)
    assert mixtral.weights_gb(batch=256) == pytest.approx(mixtral.weights_gb(), rel=1e-3)
    assert MISTRAL.weights_gb(batch=1) == MISTRAL.weights_gb()


@given(users=st.integers(1, 512), context=st.integers(300, 32_768))
def test_more_users_never_slow_the_server_nor_speed_up_a_user(users, context):
    """The shape of every capacity plot: throughput rises with users, each stream slows."""
    a100 = sizing.gpu("A100 80GB SXM")
    step = partial(sizing.decode_step_s, MISTRAL_AWQ, a100, context=context)
    assert step(users + 1) >= step(users)
    assert (users + 1) / step(users + 1) >= users / step(users) * (1 - 1e-9)


def test_choose_gives_the_cheapest_and_reasons_for_the_rest():
    """The answer of notebook 00: what to rent, and why not the cheaper ones."""
    offers = prices.offers(live=False)
    load = {"users": 32, "context": 4096, "min_tokens_per_s": 15.0}
    table = sizing.choose(offers, MISTRAL_AWQ, **load)
    assert len(table) == len(offers)
    fitting = table[table.reason == ""]
    assert len(fitting) and fitting.usd_per_hour.is_monotonic_increasing
    assert fitting.sequences.ge(32).all() and fitting.user_tokens_per_s.ge(15).all()
    assert table.index[table.reason == ""].max() == len(fitting) - 1
    reasons = table.set_index("instance_type").reason
    assert reasons["g4dn.xlarge"].startswith("KV cache holds")
    assert reasons["1x-RTX_4060_Ti-32-65536"].startswith("no published specification")
    fp16 = sizing.choose(offers, MISTRAL, **load).set_index("instance_type").reason
    assert "no KV cache" in fp16["g4dn.xlarge"]
    slow = sizing.choose(offers, MISTRAL_AWQ, **(load | {"min_tokens_per_s": 1e4}))
    assert slow.reason.str.contains("tokens/s a user").any() and not (slow.reason == "").any()
    late = sizing.choose(offers, MISTRAL_AWQ, **load, max_ttft_s=1e-6)
    assert late.reason.str.contains("first token after").any()
    assert sizing.choose(offers, MISTRAL_AWQ, users=1, context=10**6).reason.str.len().gt(0).all()


CONFIG = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 32768,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}
AWQ = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}


def test_shape_from_a_config_file_folder_url_and_hub(tmp_path, monkeypatch):
    """Any model: a file, a folder, an address, and a Hub id (here from a local server)."""
    folder = tmp_path / "acme" / "tiny" / "resolve" / "main"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | AWQ))
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", url)
    sources = (
        folder,
        folder / "config.json",
        f"{url}/acme/tiny/resolve/main/config.json",
        "acme/tiny",
    )
    for source in sources:
        shape = models.shape(source)
        assert shape.weights_gb() == pytest.approx(MISTRAL_AWQ.weights_gb())
        assert shape.kv_bytes_per_token() == 131_072
    assert models.shape("acme/tiny", "fp16").weights_gb() == pytest.approx(14.5, rel=0.001)
    with pytest.raises(CourseError, match=r"no config\.json could be read"):
        models.shape("acme/missing")
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_key_value_heads": None}, {"kv_heads": 32}),
        ({"head_dim": 64}, {"head_dim": 64}),
        (
            {"num_local_experts": 8, "num_experts_per_tok": 2},
            {"experts": 8, "experts_per_token": 2},
        ),
        ({"quantization_config": {"quant_method": "fp8"}}, {"precision": "fp8"}),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, {"precision": "awq"}),
    ],
)
def test_config_variants(tmp_path, change, expected):
    """Field names differ between model families."""
    for config in (CONFIG | change, {"text_config": CONFIG | change}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        shape = models.shape(tmp_path)
        assert {name: getattr(shape, name) for name in expected} == expected


@pytest.mark.parametrize(
    "config",
    [
        {},
        CONFIG | {"kv_lora_rank": 512},
        CONFIG | {"quantization_config": {"quant_method": "exotic"}},
    ],
)
def test_shapes_outside_the_formulas_are_refused(tmp_path, config):
    """A wrong figure is worse than none."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CourseError, match="no model these formulas describe"):
        models.shape(tmp_path)


def test_bad_names_are_told(tmp_path):
    """One sentence and what to do, not a traceback."""
    with pytest.raises(CourseError, match="no model called 'Mistral'"):
        models.shape("Mistral")
    with pytest.raises(CourseError, match="precision 'int3' is not known"):
        models.shape("Mistral-7B-Instruct-v0.3", "int3")
    with pytest.raises(CourseError, match=r"GTX 970 is not in assets/gpus\.csv"):
        sizing.gpu("GTX 970")
    (tmp_path / "config.json").write_text("not json")
    with pytest.raises(CourseError, match=r"no config\.json could be read"):
        models.shape(tmp_path)
