"""The shape of a model: the few numbers of a transformer that decide its memory and speed."""

import json
import os
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import requests

from helpers.errors import CourseError
from helpers.serve.spec import ServingSpec
from helpers.settings import ASSETS, Settings, load

# AWQ: 4-bit weights, and for each group of 128 a 16-bit scale and a 4-bit zero (arXiv:2306.00978).
BYTES_PER_WEIGHT = {"fp16": 2.0, "fp8": 1.0, "awq": 0.5 + (2 + 0.5) / 128}


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The numbers of a decoder-only transformer that decide its memory and speed.

    Args:
        name: what to call it.
        layers: number of transformer blocks.
        hidden: width of the residual stream.
        intermediate: width of the MLP (of one expert).
        heads: attention heads.
        kv_heads: key/value heads (fewer than ``heads`` with grouped-query attention).
        head_dim: width of one head.
        vocab: tokens in the vocabulary.
        tied_embeddings: input and output embedding are one matrix.
        experts: MLPs in a layer; 1 is a dense model.
        experts_per_token: MLPs that a token passes through.
        context: longest sequence the model was made for, tokens.
        precision: of the linear layers, ``"fp16"`` (or BF16), ``"fp8"`` or ``"awq"``;
            embeddings and output head stay at 16 bit in all three.
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied_embeddings: bool = False
    experts: int = 1
    experts_per_token: int = 1
    context: int = 32768
    precision: str = "fp16"

    def __post_init__(self) -> None:
        if self.precision not in BYTES_PER_WEIGHT:
            known = ", ".join(BYTES_PER_WEIGHT)
            raise CourseError(f"precision {self.precision!r} is not known", f"use one of {known}")

    def linear(self, experts: float) -> float:
        """Weights of all linear layers when ``experts`` of each layer's MLPs are counted."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + experts * 3 * self.hidden * self.intermediate)

    @property
    def _embedding(self) -> int:
        return self.vocab * self.hidden * (1 if self.tied_embeddings else 2)

    @property
    def params(self) -> float:
        """Number of parameters (norms and biases, under 0.1 %, left out)."""
        return self.linear(self.experts) + self._embedding

    def weights_gb(self, batch: int | None = None) -> float:
        """Size of the weights, GB (10^9 bytes).

        Args:
            batch: count only what a decode step of so many sequences reads: a mixture of experts
                is expected to touch ``E (1 - (1 - k/E)^batch)`` of its E experts (each token
                picks k, taken as independent). ``None`` counts everything.
        """
        touched = float(self.experts)
        if batch is not None:
            touched *= 1 - (1 - self.experts_per_token / self.experts) ** batch
        linear = self.linear(touched) * BYTES_PER_WEIGHT[self.precision]
        return (linear + self._embedding * BYTES_PER_WEIGHT["fp16"]) / 1e9

    def kv_bytes_per_token(self, element_bytes: int = 2) -> int:
        """KV cache of one token, bytes: ``2 x layers x kv_heads x head_dim x element``.

        A key and a value for each layer and KV head (vLLM paper, arXiv:2309.06180, section 3;
        grouped-query attention, arXiv:2305.13245). ``element_bytes`` is 1 for an FP8 cache.

        >>> shape("Mistral-7B-Instruct-v0.3").kv_bytes_per_token()
        131072
        """
        return 2 * self.layers * self.kv_heads * self.head_dim * element_bytes


def table() -> pd.DataFrame:
    """The models of the course with shape, licence, whether they are gated, and vLLM arguments."""
    return pd.read_csv(ASSETS / "models.csv").fillna({"note": "", "vllm_args": ""})


def shape(source: str | Path, precision: str | None = None) -> ModelShape:
    """The shape of a model.

    Args:
        source: a name or repository in ``assets/models.csv``; or a ``config.json`` as Hugging
            Face has them: a path, a URL, or a Hub id such as ``"Qwen/Qwen3-8B"``.
        precision: ``"fp16"``, ``"fp8"`` or ``"awq"``; ``None`` takes the source's own.

    Raises:
        CourseError: nothing of that name, no answer, or a model these formulas do not describe.
    """
    name = str(source)
    found = _listed(name) or {"model": name} | _from_config(_read_config(name), name)
    found |= {"name": found["model"], "precision": precision or found["precision"]}
    return ModelShape(**{item.name: found[item.name] for item in fields(ModelShape)})


def spec(name: str, settings: Settings) -> ServingSpec:
    """What to run to serve a model of the table, with the arguments its vLLM recipe asks for.

    Args:
        name: a name or repository in ``assets/models.csv``.
        settings: holds the Hugging Face token; it enters the environment of a gated model's
            server, and of no other.

    Raises:
        CourseError: no such model, or it is gated and no token is set.
    """
    found = _listed(name)
    if not found:
        raise _unknown(name)
    env = {}
    if found["gated"] == "yes" and not settings.hf_token:
        raise CourseError(
            f"{found['model']} is gated and HF_TOKEN is not set",
            f"accept its terms at https://huggingface.co/{found['repo']}, create a token at "
            "https://huggingface.co/settings/tokens and put it into .env",
        )
    if found["gated"] != "no" and settings.hf_token:
        env["HF_TOKEN"] = settings.hf_token.get_secret_value()
    words, longest = shlex.split(found["vllm_args"]), int(found["max_model_len"])
    return ServingSpec(model=found["repo"], max_model_len=longest, extra_args=tuple(words), env=env)


def _listed(name: str) -> dict[str, Any]:
    """The row of ``assets/models.csv`` with that name or repository; empty without one."""
    known = table()
    rows = known[(known.model == name) | (known.repo == name)].to_dict("records")
    return {str(column): value for column, value in rows[0].items()} if rows else {}


def _unknown(name: str) -> CourseError:
    return CourseError(
        f"there is no model called {name!r} in assets/models.csv",
        f"known are {', '.join(table().model)}; models.shape also takes a config.json (path or "
        "URL) or a Hub id owner/name",
    )


def _read_config(source: str) -> dict[str, Any]:
    """A Hugging Face ``config.json`` from a path, a URL or the Hub."""
    path, url, token = Path(source).expanduser(), source, None
    try:
        if path.exists():
            return json.loads((path / "config.json" if path.is_dir() else path).read_text())
        if "://" not in source:
            if source.count("/") != 1:
                raise _unknown(source)
            hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
            url, token = f"{hub}/{source}/resolve/main/config.json", load().hf_token
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        answer = requests.get(url, headers=headers, timeout=20)
        answer.raise_for_status()
        return answer.json()
    except (OSError, ValueError) as error:
        raise CourseError(
            f"no config.json could be read from {source} ({type(error).__name__})",
            "check the name and the network; for a gated model accept its terms on its Hub page "
            "and set HF_TOKEN in .env",
        ) from error


def _from_config(config: dict[str, Any], source: str) -> dict[str, Any]:
    """Our fields from Hugging Face's names; multimodal models keep theirs in ``text_config``."""
    text = config | (config.get("text_config") or {})
    quantization = text.get("quantization_config") or config.get("quantization_config") or {}
    method, bits = quantization.get("quant_method", ""), quantization.get("bits")
    precision = "awq" if bits == 4 or method == "awq" else "fp8" if method == "fp8" else "fp16"
    try:
        if "kv_lora_rank" in text or (method and precision == "fp16"):
            raise KeyError("multi-head latent attention" if "kv_lora_rank" in text else method)
        heads = text["num_attention_heads"]
        experts = text.get("num_local_experts") or text.get("num_experts") or 1
        return {
            "layers": text["num_hidden_layers"],
            "hidden": text["hidden_size"],
            "intermediate": text.get("moe_intermediate_size") or text["intermediate_size"],
            "heads": heads,
            "kv_heads": text.get("num_key_value_heads") or heads,
            "head_dim": text.get("head_dim") or text["hidden_size"] // heads,
            "vocab": text["vocab_size"],
            "tied_embeddings": text.get("tie_word_embeddings") or False,
            "experts": experts,
            "experts_per_token": text.get("num_experts_per_tok", 1) if experts > 1 else 1,
            "context": text.get("max_position_embeddings", 32768),
            "precision": precision,
        }
    except KeyError as error:
        raise CourseError(
            f"{source} is not a model these formulas describe ({error.args[0]})",
            "they hold for decoder-only transformers with grouped-query attention",
        ) from None
