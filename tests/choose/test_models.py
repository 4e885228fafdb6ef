"""The shape of a model: published sizes must come out, and a ``config.json`` must be understood."""

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from helpers.choose import models
from helpers.errors import CourseError

GIB = 2**30
MISTRAL = models.shape("Mistral-7B-Instruct-v0.3")
MISTRAL_AWQ = models.shape("solidrust/Mistral-7B-Instruct-v0.3-AWQ")


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


def test_mixture_of_experts_reads_fewer_weights_at_small_batches():
    """One token of Mixtral reads two of eight experts; a large batch reads them all."""
    mixtral = models.shape("Mixtral-8x7B-Instruct-v0.1")
    looked_up = 2 * 32_000 * 4096 / 1e9  # GB of the input embedding: a row is read
    assert mixtral.weights_gb(batch=1) == pytest.approx(2 * 12.9 - looked_up, rel=0.01)
    most = mixtral.weights_gb() - looked_up
    assert mixtral.weights_gb(batch=256) == pytest.approx(most, rel=1e-3)


def test_a_decode_step_reads_no_input_embedding():
    """Only a row of it; an output head that is the same matrix is read whole."""
    looked_up = 2 * 32_768 * 4096 / 1e9
    assert MISTRAL.weights_gb() - MISTRAL.weights_gb(batch=1) == pytest.approx(looked_up)
    small = models.shape("SmolLM2-135M-Instruct")
    assert small.weights_gb(batch=1) == small.weights_gb()


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


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local server in the place of the Hub, with one model; its folder."""
    folder = tmp_path / "acme" / "tiny" / "resolve" / "main"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | AWQ))
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield folder
    server.shutdown()
    server.server_close()


def test_shape_from_a_config_file_and_from_the_hub(hub):
    """Any model: the path of its config, or its id on the Hub."""
    for source in (hub / "config.json", "acme/tiny"):
        shape = models.shape(source)
        assert shape.name == str(source)
        assert shape.weights_gb() == pytest.approx(MISTRAL_AWQ.weights_gb())
        assert shape.kv_bytes_per_token() == 131_072
    assert models.shape("acme/tiny", "fp16").weights_gb() == pytest.approx(14.5, rel=0.001)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_key_value_heads": None}, {"kv_heads": 32}),
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
        shape = models.shape(tmp_path / "config.json")
        assert {name: getattr(shape, name) for name in expected} == expected


def test_a_window_bounds_what_a_sequence_holds(tmp_path):
    """A chat of 100,000 tokens holds no more than the window; a short one holds what it has."""
    config = CONFIG | {"sliding_window": 4096, "model_type": "mistral"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    windowed = models.shape(tmp_path / "config.json")
    assert windowed.kv_bytes(1000) == MISTRAL.kv_bytes(1000) == 1000 * 131_072
    assert windowed.kv_bytes(20_000) == windowed.kv_bytes(4096) == 4096 * 131_072
    assert windowed.kv_bytes_per_token() == 0
    assert windowed.kv_bytes(1000, element_bytes=1) == 1000 * 65_536


def test_bad_names_are_told(hub):
    """One sentence and what to do, not a traceback."""
    with pytest.raises(CourseError, match=r"no model .* is called 'Mistral'"):
        models.shape("Mistral")
    with pytest.raises(CourseError, match="int3 is not understood"):
        models.shape("Mistral-7B-Instruct-v0.3", "int3")
    (hub / "config.json").write_text("not json")
    with pytest.raises(CourseError, match=r"no config\.json could be read"):
        models.shape(hub / "config.json")
