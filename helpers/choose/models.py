"""The shape of a model: the few numbers of a transformer that decide its memory and speed."""

import json
import os
import shlex
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import requests
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from helpers.errors import CourseError
from helpers.serve.spec import ServingSpec
from helpers.settings import ASSETS, Settings, read

# AWQ: 4-bit weights, and for each group of 128 a 16-bit scale and a 4-bit zero (arXiv:2306.00978).
BYTES_PER_WEIGHT = {"fp16": 2.0, "fp8": 1.0, "awq": 0.5 + (2 + 0.5) / 128}


class ModelShape(BaseModel):
    """The numbers of a decoder-only transformer that decide its memory and speed.

    The aliases are the names in a Hugging Face ``config.json``.

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
        kv_lora_rank: must be absent: multi-head latent attention caches something else.
    """

    model_config = ConfigDict(frozen=True, validate_by_name=True)

    name: str = Field(alias="model")
    layers: int = Field(alias="num_hidden_layers")
    hidden: int = Field(alias="hidden_size")
    intermediate: int = Field(
        validation_alias=AliasChoices("moe_intermediate_size", "intermediate_size")
    )
    heads: int = Field(alias="num_attention_heads")
    kv_heads: int = Field(alias="num_key_value_heads", default_factory=lambda known: known["heads"])
    head_dim: int = Field(default_factory=lambda known: known["hidden"] // known["heads"])
    vocab: int = Field(alias="vocab_size")
    tied_embeddings: bool = Field(False, alias="tie_word_embeddings")
    experts: int = Field(1, validation_alias=AliasChoices("num_local_experts", "num_experts"))
    experts_per_token: int = Field(1, alias="num_experts_per_tok")
    context: int = Field(32768, alias="max_position_embeddings")
    precision: Literal["fp16", "fp8", "awq"]
    kv_lora_rank: None = Field(None, repr=False)

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
        source: a name or repository in ``assets/models.csv``; for any other model a Hub id such
            as ``"Qwen/Qwen3-8B"``, or the path of its ``config.json``.
        precision: ``"fp16"``, ``"fp8"`` or ``"awq"``; ``None`` takes the source's own.

    Raises:
        CourseError: nothing of that name, no answer, or a model these formulas do not describe.
    """
    found = _listed(str(source)) or _config(str(source))
    try:
        return ModelShape(**found | {"precision": precision or found["precision"]})
    except ValidationError as error:
        wrong = "; ".join(f"{one['loc'][0]}: {one['msg']}" for one in error.errors())
        raise CourseError(
            f"{source} is not a model these formulas describe ({wrong})",
            "they hold for decoder-only transformers with grouped-query attention",
        ) from None


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
        raise CourseError(
            f"there is no model called {name!r} in assets/models.csv",
            f"known are {', '.join(table().model)}",
        )
    token = settings.hf_token
    if found["gated"] == "yes" and not token:
        raise CourseError(
            f"{found['model']} is gated and HF_TOKEN is not set",
            f"accept its terms at https://huggingface.co/{found['repo']}, create a token at "
            "https://huggingface.co/settings/tokens and put it into .env",
        )
    env = {"HF_TOKEN": token.get_secret_value()} if token and found["gated"] != "no" else {}
    words, longest = shlex.split(found["vllm_args"]), int(found["max_model_len"])
    return ServingSpec(model=found["repo"], max_model_len=longest, extra_args=tuple(words), env=env)


def _listed(name: str) -> dict[str, Any]:
    """The row of ``assets/models.csv`` with that name or repository; empty without one."""
    known = table()
    rows = known[(known.model == name) | (known.repo == name)].to_dict("records")
    return {str(column): value for column, value in rows[0].items()} if rows else {}


def _config(source: str) -> dict[str, Any]:
    """The ``config.json`` of a model, from a file or from the Hub."""
    hub, token = os.environ.get("HF_ENDPOINT", "https://huggingface.co"), read().hf_token
    headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
    try:
        if Path(source).is_file():
            config = json.loads(Path(source).read_text("utf-8-sig"))
        else:
            url = f"{hub}/{source}/resolve/main/config.json"
            answer = requests.get(url, headers=headers, timeout=20)
            answer.raise_for_status()
            config = answer.json()
    except (OSError, ValueError) as error:
        raise CourseError(
            f"no model in assets/models.csv is called {source!r}, and no config.json could be read "
            f"for it ({type(error).__name__})",
            "check the name (models.table() has the known ones) and the network; for a gated model "
            "accept its terms on its Hub page and set HF_TOKEN in .env",
        ) from error
    config |= config.get("text_config") or {}  # there a multimodal model keeps its own
    quantized = config.get("quantization_config") or {}
    precision = "awq" if quantized.get("bits") == 4 else quantized.get("quant_method", "fp16")
    stated = {name: value for name, value in config.items() if value}  # else the default holds
    return stated | {"model": source, "precision": precision}
