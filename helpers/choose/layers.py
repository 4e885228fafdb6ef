"""The layers of a model, read from its ``config.json``: what each of them weighs and caches.

Model families have different names for the same number, and a file leaves out what is its model
type's default: both stand in ``assets/model_fields.json``. What would change the size and is not
understood is refused with the field's name, because a wrong figure is worse than none.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from helpers.settings import ASSETS

CONTEXT = 32768  # tokens, where a file does not say for how many its model was made
FIELDS = json.loads((ASSETS / "model_fields.json").read_text())


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer in numbers of weights and of cached values.

    Args:
        weights: read for every token: attention or its replacement, a dense MLP, shared experts.
        expert: weights of one routed expert; 0 without them.
        kv: values that a token adds to the KV cache.
        window: after how many tokens that cache stops growing; ``None`` if it never does.
        state: values that a sequence holds whatever its length (Mamba, linear attention).
        scores: heads x (width of a key + width of a value), for the FLOPs of attention.
    """

    weights: int
    expert: int = 0
    kv: int = 0
    window: int | None = None
    state: int = 0
    scores: int = 0


class Config:
    """A ``config.json`` under one name for each field, which knows those that nobody has read."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = {**FIELDS["types"].get(fields.get("model_type"), {}), **fields}
        self._read = set[str]()

    def get(self, name: str, default: Any = None) -> Any:
        """The field under any of its names."""
        names = FIELDS["names"].get(name, [name])
        self._read.update(names)
        return next((self._fields[n] for n in names if self._fields.get(n) is not None), default)

    def number(self, name: str, default: int | None = None) -> int:
        """A field that must be a whole number."""
        value = self.get(name, default)
        if not isinstance(value, int):
            names = [other for other in FIELDS["names"].get(name, []) if other != name] or [name]
            raise ValueError(f"{' or '.join(names)}: {value or 'missing'}")
        return value

    def finish(self) -> None:
        """Refuse what would change the size and was not read."""
        for name, value in self._fields.items():
            sized = value and name not in self._read and re.search(FIELDS["size"], name)
            if sized and not re.fullmatch(FIELDS["harmless"], name):
                raise ValueError(f"{name}: not understood, and it may change the size")


def layers(config: Config) -> tuple[Layer, ...]:
    """Every layer of a model, in order.

    Raises:
        ValueError: a field is missing or not understood; the message begins with its name.
    """
    kinds = _kinds(config)
    dense, sparse = _mlps(config)
    alone = {"mlp": dense, "moe": sparse}
    mixers = {kind: _mixer(config, kind) for kind in {*kinds} - alone.keys()}
    if alone.keys() & {*kinds}:  # Nemotron-H: a layer is either attention, or Mamba, or an MLP
        return tuple((alone | mixers)[kind] for kind in kinds)
    routed = _routed(config, len(kinds))
    pairs = [(mixers[kind], sparse if at in routed else dense) for at, kind in enumerate(kinds)]
    return tuple(replace(a, weights=a.weights + b.weights, expert=b.expert) for a, b in pairs)


def _kinds(config: Config) -> list[str]:
    """For each layer ``full``, ``window`` or ``state``; where it is one of these alone, its MLP."""
    stated, full = config.get("layer_types", []), config.get("full_layers")
    count = config.number("layers", len(stated) or None)
    window = config.get("window") and config.get("use_sliding_window", True)
    period, _ = config.number("full_period", 0), config.get("window_period")
    offset = config.number("attn_layer_offset", period - 1)
    if stated:
        if len(stated) != count:
            raise ValueError(f"layer_types: {len(stated)} of them for {count} layers")
        return [FIELDS["kinds"].get(str(kind), str(kind)) for kind in stated]
    if period or full:
        full, other = full or range(offset, count, period), "state"
    elif window:
        every, other = config.number("window_period", count + 1), "window"
        full = {*range(every - 1, count, every), *range(config.number("max_window_layers", 0))}
    else:
        return ["full"] * count
    return ["full" if at in full else other for at in range(count)]


def _routed(config: Config, count: int) -> set[int]:
    """The layers with routed experts."""
    period, first = config.number("expert_period", 1), config.number("dense_layers", 0)
    offset, last = config.number("expert_layer_offset", period - 1), config.number("last_moe", -1)
    every, dense = config.get("expert_layers", 1), config.get("mlp_only_layers", [])
    if isinstance(every, list):
        dense = [*dense, *(at for at, kind in enumerate(every) if kind in (0, "dense"))]
    elif every != 1:
        raise ValueError(f"moe_layer_freq: {every} is not understood")
    chosen = range(first, count if last < 0 else last + 1) if config.get("experts", 0) > 1 else ()
    return {at for at in chosen if at % period == offset} - {*dense}


def _mlps(config: Config) -> tuple[Layer, Layer]:
    """The MLP of a dense layer, and that of a layer with routed experts."""
    hidden, kind = config.number("hidden"), config.get("model_type")
    act = config.get("act", "" if kind else "silu")
    gated = 3 if act.startswith(("silu", "swi")) else None
    if not (matrices := config.get("mlp_matrices", gated)):
        raise ValueError(f"hidden_act: {act} does not tell whether {kind}'s MLP is gated")
    usual = config.get("expert_intermediate", hidden * config.get("mlp_ratio", 0) or None)
    width = config.number("intermediate", usual)
    dense = config.number("dense_intermediate", width)
    expert = config.number("expert_intermediate", width)
    shared = config.number("shared_intermediate", 0)
    shares = config.number("shared_experts", 1 if shared else 0) * (shared or expert)
    router = hidden * config.number("experts", 0)
    sparse = Layer(weights=matrices * hidden * shares + router, expert=matrices * hidden * expert)
    return Layer(weights=matrices * hidden * dense), sparse


def _mixer(config: Config, kind: str) -> Layer:
    """What a layer does between tokens: attention, or something with a state."""
    if kind not in ("full", "window", "state"):
        raise ValueError(f"layer_types: {kind} is not understood")
    if kind == "state":
        return _state(config)
    layer = _latent(config) if config.get("kv_lora_rank") else _attention(config)
    if kind == "window" and (window := config.number("window")) < config.number("context", CONTEXT):
        return replace(layer, window=window)
    return layer


def _attention(config: Config) -> Layer:
    hidden, heads = config.number("hidden"), config.number("heads")
    kv, key = config.number("kv_heads", heads), config.number("head_dim", hidden // heads)
    value = config.number("v_head_dim", key)
    query = key * (2 if config.get("attn_output_gate") else 1)
    weights = hidden * (heads * (query + value) + kv * (key + value))
    return Layer(weights=weights, kv=kv * (key + value), scores=heads * (key + value))


def _latent(config: Config) -> Layer:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): it caches a latent."""
    hidden, heads, rank = (config.number(name) for name in ("hidden", "heads", "kv_lora_rank"))
    rope, value = config.number("qk_rope_head_dim"), config.number("v_head_dim")
    plain, low = config.number("qk_nope_head_dim"), config.number("q_lora_rank", 0)
    query, _ = heads * (plain + rope), config.get("head_dim")  # another word for one of these
    weights = low * (hidden + query) if low else hidden * query
    weights += hidden * (rank + rope) + rank * heads * (plain + value) + heads * value * hidden
    return Layer(weights=weights, kv=rank + rope, scores=heads * (plain + rope + value))


def _state(config: Config) -> Layer:
    """What keeps a state of fixed size instead of a cache.

    Mamba-2 (arXiv:2405.21060) and the gated delta net (arXiv:2412.06464) are made of the same
    parts; lightning attention (arXiv:2501.08313) has as many keys as values and no convolution.
    """
    hidden, expand = config.number("hidden"), config.get("state_expand")
    if config.get("mamba_dt_rank"):  # the first Mamba (arXiv:2312.00752)
        size, inner = config.number("state_size"), hidden * expand
        rank = config.get("mamba_dt_rank")
        rank = math.ceil(hidden / 16) if rank == "auto" else rank
        weights, mixed = inner * (3 * hidden + 2 * rank + 3 * size), inner
    else:
        lightning = config.get("lightning_attention")
        heads = config.number("state_heads", config.number("heads") if lightning else None)
        width = config.number("state_head_dim", config.get("head_dim", hidden // heads))
        size = config.number("state_size", width)
        inner = heads * width
        mixed = inner + 2 * config.number("state_groups", heads) * size
        weights = hidden * (2 * inner + mixed + heads)
    kernel = config.number("state_conv", 1)
    return Layer(weights=weights + kernel * mixed, state=inner * size + (kernel - 1) * mixed)
