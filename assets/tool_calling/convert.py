"""A trained adapter as it is given away: half precision, for vLLM and for llama.cpp.

    python convert.py TRAINED_FOLDER MODEL_FOLDER OUT

``OUT`` gets ``adapter.gguf`` for llama.cpp, and ``adapter_model.safetensors`` with
``adapter_config.json`` for everything that reads PEFT's form.

The ``gguf`` package has no converter for adapters. Two things differ between the two formats:
the names of the tensors, and the order of the rows of q and k, because llama.cpp rotates
neighbouring pairs of a head's rows and transformers rotates its two halves.
"""

import json
import re
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file, save_file

NAMES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def convert(trained: Path, model: Path, out: Path) -> None:
    """Write the adapter in ``trained`` (PEFT's form) for ``model``, its base, to ``out``."""
    settings = json.loads((trained / "adapter_config.json").read_text())
    base = json.loads((model / "config.json").read_text())
    heads = {"q_proj": base["num_attention_heads"], "k_proj": base["num_key_value_heads"]}
    tensors = load_file(trained / "adapter_model.safetensors")
    tensors = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    save_file(tensors, out / "adapter_model.safetensors", {"format": "pt"})
    settings["base_model_name_or_path"] = "HuggingFaceTB/SmolLM2-135M-Instruct"
    (out / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")

    writer = gguf.GGUFWriter(str(out / "adapter.gguf"), "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(settings["lora_alpha"]))
    for key, weight in sorted(tensors.items()):
        layer, part, side = re.search(r"layers\.(\d+)\..*\.(\w+)\.lora_([AB])\.", key).groups()
        if side == "B" and part in heads:
            weight = _interleave(weight, heads[part])
        name = f"blk.{layer}.{NAMES[part]}.weight.lora_{side.lower()}"
        writer.add_tensor(name, np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, rows.shape[1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


if __name__ == "__main__":
    convert(*map(Path, sys.argv[1:4]))
