"""The shape of a model: the few numbers of a transformer that decide its memory and speed."""

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import requests

from helpers.choose.layers import CONTEXT, FIELDS, Config, Layer, layers
from helpers.errors import CourseError
from helpers.serve.spec import ServingSpec
from helpers.settings import ASSETS, Settings, read

# MXFP4: 4 bits, and for each group of 32 an 8-bit scale (OCP Microscaling Formats 1.0).
# AWQ: 4-bit weights, and for each group of 128 a 16-bit scale and a 4-bit zero (arXiv:2306.00978).
BYTES_PER_WEIGHT = {"fp16": 2.0, "fp8": 1.0, "awq": 0.5 + (2 + 0.5) / 128, "mxfp4": 0.5 + 1 / 32}


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The numbers of a decoder-only language model that decide its memory and speed.

    Args:
        name: what to call it.
        layers: what each of its layers holds.
        embedding: weights of the input embedding, and of the output head, which is as large.
        matrices: 2, or 1 where both are the same.
        kv_heads: into how many pieces the KV cache of a token can be split.
        experts: routed MLPs of a layer that has them; 1 in a dense model.
        experts_per_token: routed MLPs that a token passes through.
        context: longest sequence the model was made for, tokens.
        precision: of the linear layers, ``"fp16"`` (or BF16), ``"fp8"`` or ``"awq"``, or
            ``"mxfp4"`` (the experts alone); embeddings and output head stay at 16 bit in all.
    """

    name: str
    layers: tuple[Layer, ...] = field(repr=False)
    embedding: int
    matrices: int
    kv_heads: int
    experts: int
    experts_per_token: int
    context: int
    precision: str

    def linear(self, experts: float) -> float:
        """Weights of all linear layers when ``experts`` of each layer's routed MLPs are counted."""
        return sum(layer.weights + experts * layer.expert for layer in self.layers)

    @property
    def params(self) -> float:
        """Number of parameters of the language model.

        Norms and biases (under 0.3 %), image encoders and layers that only predict further tokens
        (MTP) are left out.
        """
        return self.linear(self.experts) + self.matrices * self.embedding

    def weights_gb(self, batch: int | None = None) -> float:
        """Size of the weights, GB (10^9 bytes).

        Args:
            batch: count only what a decode step of so many sequences reads. In the input embedding
                it only looks up a row; of a mixture's E experts it is expected to touch
                ``E (1 - (1 - k/E)^batch)`` (each token picks k, taken as independent). ``None``
                counts everything.
        """
        touched, ends = float(self.experts), self.matrices * self.embedding
        if batch is not None:
            ends = self.embedding
            touched *= 1 - (1 - self.experts_per_token / self.experts) ** batch
        always = self.linear(0)
        routed, width = self.linear(touched) - always, BYTES_PER_WEIGHT[self.precision]
        rest = BYTES_PER_WEIGHT["fp16"] if self.precision == "mxfp4" else width
        return (routed * width + always * rest + ends * BYTES_PER_WEIGHT["fp16"]) / 1e9

    def kv_bytes_per_token(self, element_bytes: int = 2) -> int:
        """By how much one more token lets the KV cache of a long sequence grow, bytes.

        A key and a value for each layer and KV head, ``2 x layers x kv_heads x head_dim x
        element`` (vLLM paper, arXiv:2309.06180, section 3; grouped-query attention,
        arXiv:2305.13245), or the latent of MLA. Layers with a sliding window have stopped growing,
        and those with a state (Mamba, linear attention) never do: :meth:`kv_bytes` counts them.
        ``element_bytes`` is 1 for an FP8 cache.

        >>> shape("Mistral-7B-Instruct-v0.3").kv_bytes_per_token()
        131072
        """
        return element_bytes * sum(layer.kv for layer in self.layers if not layer.window)

    def kv_bytes(self, context: float, element_bytes: int = 2) -> float:
        """What one sequence of ``context`` tokens holds in the KV cache, bytes.

        Args:
            context: tokens of the sequence, prompt and answer.
            element_bytes: 1 for an FP8 cache; the state of Mamba and linear attention stays at 2.
        """
        cached = (one.kv * min(context, one.window or context) for one in self.layers)
        return element_bytes * sum(cached) + 2 * sum(one.state for one in self.layers)


def table() -> pd.DataFrame:
    """The models of the course with shape, licence, whether they are gated, and vLLM arguments."""
    return pd.read_csv(ASSETS / "models.csv").fillna({"note": "", "vllm_args": ""})


def shape(source: str | Path, precision: str | None = None) -> ModelShape:
    """The shape of a model.

    Args:
        source: a name or repository in ``assets/models.csv``; for any other model a Hub id such
            as ``"Qwen/Qwen3-8B"``, or the path of its ``config.json``.
        precision: as in :class:`ModelShape`; ``None`` takes the source's own.

    Raises:
        CourseError: nothing of that name, no answer, or a model these formulas do not describe.
    """
    listed, columns = _listed(str(source)), {*FIELDS["names"], "model", "precision"}
    found = {name: listed[name] for name in listed if name in columns} or _config(str(source))
    config = Config(found)
    try:
        kv_heads = config.number("kv_heads", config.number("heads"))
        made = ModelShape(
            name=found["model"],
            matrices=1 if config.number("tied_embeddings") else 2,
            layers=layers(config),
            embedding=config.number("vocab") * config.number("hidden"),
            kv_heads=1 if config.get("kv_lora_rank") else kv_heads,
            experts=max(1, config.number("experts", 1)),
            experts_per_token=max(1, config.number("experts_per_token", 1)),
            context=config.number("context", CONTEXT),
            precision=_precision(precision or found.get("precision"), found),
        )
        config.finish()
    except (ValueError, TypeError) as error:
        hint = "its model card says how many parameters it has; if only the quantization is "
        hint += f"unknown, give the nearest precision of {', '.join(BYTES_PER_WEIGHT)}"
        what = f"{source} is not a model these formulas describe ({error})"
        raise CourseError(what, hint) from None
    return made


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
        what = f"there is no model called {name!r} in assets/models.csv"
        raise CourseError(what, f"known are {', '.join(table().model)}")
    token = settings.hf_token
    if found["gated"] == "yes" and not token:
        hint = f"accept its terms at https://huggingface.co/{found['repo']}, create a token at "
        hint += "https://huggingface.co/settings/tokens and put it into .env"
        raise CourseError(f"{found['model']} is gated and HF_TOKEN is not set", hint)
    env = {"HF_TOKEN": token.get_secret_value()} if token and found["gated"] != "no" else {}
    words, longest = shlex.split(found["vllm_args"]), int(found["max_model_len"])
    return ServingSpec(model=found["repo"], max_model_len=longest, extra_args=tuple(words), env=env)


def _listed(name: str) -> dict[Any, Any]:
    """The row of ``assets/models.csv`` with that name or repository; empty without one."""
    known = table()
    rows = known[(known.model == name) | (known.repo == name)].to_dict("records")
    return dict(rows[0]) if rows else {}


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
        what = f"no model in assets/models.csv is called {source!r}, and no config.json could be "
        what += f"read for it ({type(error).__name__})"
        hint = "check the name (models.table() has the known ones) and the network; for a gated "
        hint += "model accept its terms on its Hub page and set HF_TOKEN in .env"
        raise CourseError(what, hint) from error
    while text := next((config[name] for name in FIELDS["nested"] if config.get(name)), None):
        config = {name: config[name] for name in FIELDS["outside"] if name in config} | text
    return config | {"model": source}


def _precision(given: str | None, config: Mapping[str, Any]) -> str:
    """The precision that was given, or that a file's ``quantization_config`` names."""
    found: dict[str, Any] = next((config[n] for n in FIELDS["quantized"] if config.get(n)), {})
    groups = [group.get("weights") or {} for group in found.get("config_groups", {}).values()]
    method = found.get("quant_algo") or found.get("quant_method", "fp16")
    formats = {f"{one.get('type')}{one.get('num_bits')}" for one in groups}
    formats = formats or {f"int{found['bits']}" if "bits" in found else method}
    stored = given or FIELDS["precisions"].get("+".join(sorted(formats)))
    if stored not in BYTES_PER_WEIGHT:
        raise ValueError(f"quantization_config: {given or ', '.join(formats)} is not understood")
    return stored
