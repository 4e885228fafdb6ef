"""Layers: what was published of a model must come out of its config.json, or a refusal."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from helpers.choose import models
from helpers.choose.layers import Config, layers
from helpers.errors import CourseError

PAIRS = yaml.safe_load((Path(__file__).parent / "published.yaml").read_text())
CONFIG = next(one["config"] for one in PAIRS if one["model"] == "Mistral-7B-v0.1")
CONFIG = {name: value for name, value in CONFIG.items() if name != "sliding_window"}


@pytest.fixture
def sized(tmp_path):
    """Read the shape of a config, as a reader does who has the file."""

    def read(config, precision=None):
        (tmp_path / "config.json").write_text(json.dumps(config))
        return models.shape(tmp_path / "config.json", precision)

    return read


@pytest.mark.parametrize("pair", PAIRS, ids=[one["model"] for one in PAIRS])
def test_published_sizes(sized, pair):
    """A size that is wrong without a word rents a machine on which the model does not fit."""
    shape = sized(pair["config"])
    assert shape.params == pytest.approx(pair["params"], rel=0.02)
    expected = {"fp8", "mxfp4"} & {*pair["kinds"]} or {"fp16"}
    assert {shape.precision} == expected
    if "kv_bytes_per_token" in pair:
        assert shape.kv_bytes_per_token() == pair["kv_bytes_per_token"]
    if "weights_gb" in pair:
        assert shape.weights_gb() == pytest.approx(pair["weights_gb"], rel=0.01)


def test_the_pairs_cover_what_people_serve():
    """Fewer would leave a family unwatched; each says where its numbers come from."""
    kinds = Counter(kind for one in PAIRS for kind in one["kinds"])
    assert len(PAIRS) >= 25
    assert all(kinds[one] >= 4 for one in ("experts", "mla", "hybrid", "two matrices", "fp8"))
    assert all("https://" in one["source"] for one in PAIRS)


def test_what_layers_cache():
    """Only full attention grows for ever; a window stops, and a state never starts to grow."""
    config = {"num_hidden_layers": 4, "sliding_window": 1024, "model_type": "gemma3_text"}
    windows = [
        one.window for one in layers(Config(CONFIG | config | {"sliding_window_pattern": 2}))
    ]
    assert windows == [1024, None, 1024, None]
    jamba = next(one["config"] for one in PAIRS if one["model"] == "Jamba-v0.1")
    found = layers(Config(jamba))
    assert [at for at, one in enumerate(found) if one.kv] == [4, 12, 20, 28]
    assert [at for at, one in enumerate(found) if one.state] == [
        at for at in range(32) if at not in (4, 12, 20, 28)
    ]
    assert all(one.expert for one in found[1::2]) and not any(one.expert for one in found[::2])


EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 512}


@pytest.mark.parametrize(
    ("change", "routed"),
    [
        ({"first_k_dense_replace": 2}, [2, 3, 4, 5]),
        ({"decoder_sparse_step": 2}, [1, 3, 5]),
        ({"mlp_only_layers": [0, 5]}, [1, 2, 3, 4]),
        ({"moe_layer_freq": [0, 1, 1, 1, 1, 0]}, [1, 2, 3, 4]),
        ({"mlp_layer_types": ["dense", *["sparse"] * 5]}, [1, 2, 3, 4, 5]),
        ({"moe_layer_start_index": 1, "moe_layer_end_index": 3}, [1, 2, 3]),
    ],
)
def test_routed_experts_in_some_layers_only(change, routed):
    """A dense layer counted as 128 experts is the largest error of all."""
    found = layers(Config(CONFIG | EXPERTS | change | {"num_hidden_layers": 6}))
    assert [at for at, one in enumerate(found) if one.expert] == routed


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"num_hidden_layers": None}, "num_hidden_layers .*missing"),
        ({"num_attention_heads": "many"}, "num_attention_heads .*many"),
        ({"num_sparse_experts": 64}, "num_sparse_experts"),
        ({"mamba_d_ssm": 4096}, "mamba_d_ssm"),
        ({"hidden_size_per_layer_input": 256}, "hidden_size_per_layer_input"),
        ({"kv_lora_rank": 512}, "qk_rope_head_dim: missing"),
        ({"index_topk": 2048}, "index_topk"),
        ({"linear_attn_config": {"num_heads": 32}}, "linear_attn_config"),
        ({"layer_types": ["full_attention"] * 31}, "layer_types: 31 of them for 32"),
        ({"layer_types": ["hybrid"] * 32}, "layer_types: hybrid"),
        ({"layer_types": ["linear_attention"] * 32}, ".*linear_num_value_heads: missing"),
        ({"hidden_act": "gelu", "model_type": "new"}, "hidden_act: gelu"),
        ({"model_type": "qwen"}, "hidden_act: "),
        ({"sliding_window": 4096, "sliding_window_pattern": "LLLG"}, "sliding_window_pattern"),
        ({"tie_word_embeddings": None, "model_type": "new"}, "tie_word_embeddings: missing"),
        ({"quantization_config": {"quant_method": "exotic"}}, "quantization_config: exotic"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 8}}, "quantization_config: int8"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(sized, change, field):
    """A wrong figure is worse than none, and the name tells the reader where to look."""
    with pytest.raises(CourseError, match=f"formulas describe .{field}"):
        sized(CONFIG | change)


GROUP = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}
COMPRESSED = {"quant_method": "compressed-tensors", "config_groups": {"group_0": GROUP}}


@pytest.mark.parametrize(
    ("quantized", "given", "precision"),
    [
        (COMPRESSED, None, "fp8"),
        (COMPRESSED, "fp16", "fp16"),
        ({"quant_method": "exotic"}, "fp8", "fp8"),
        ({"quant_method": "gptq", "bits": 4}, None, "awq"),
        ({"group_size": 64, "bits": 4}, None, "awq"),
    ],
)
def test_precision_is_read_or_given(sized, quantized, given, precision):
    """Who knows the precision may say it, whatever the file calls it."""
    shape = sized(CONFIG | {"quantization_config": quantized}, given)
    assert shape.precision == precision
    nested = {"text_config": CONFIG, "quantization_config": quantized}
    assert sized(nested, given).weights_gb() == shape.weights_gb()
