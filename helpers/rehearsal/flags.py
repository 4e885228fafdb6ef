"""vLLM's options in llama.cpp's words: each does here what it does there, on a smaller scale.

Where llama.cpp has nothing like it, the server refuses to start and names the option, as vLLM does
with one that it does not know: an option without an effect would look like one that does not help.
Two kinds have none and are taken all the same, so that a command line from elsewhere starts: what
:mod:`helpers.rehearsal.engine_vllm` leaves out, for a GPU or another model's files (the log tells),
and what no customer of llama.cpp could notice.
"""

import argparse
import json
import shlex
from typing import Any

from helpers.rehearsal.engine_vllm import count

CONTEXT = 2048  # tokens of a sequence, at most: what a laptop reads in a few seconds
# How the KV cache is stored. The 8 bits of vLLM are floating point, those of llama.cpp integers.
KV_TYPES = {"auto": "F16", "float16": "F16", "bfloat16": "BF16"}
KV_TYPES |= dict.fromkeys(("fp8", "fp8_e4m3", "fp8_e5m2"), "Q8_0")
# True here anyway: the model reads text only and brings no code of its own, and llama.cpp always
# tells how much of a prompt came from the cache.
_SWITCHES = ["language-model-only", "trust-remote-code", "enable-prompt-tokens-details"]
# What nobody could notice here: there are no CUDA graphs to do without.
_SWITCHES += ["enforce-eager", "disable-log-requests", "disable-log-stats"]
_VALUES = ("seed", "swap-space", "uvicorn-log-level", "download-dir")
# The keys of --speculative-config; each may also be an option of its own, after a dot.
_DRAFTS: dict[str, Any] = {"method": str, "num_speculative_tokens": count}
_DRAFTS |= {"prompt_lookup_min": count, "prompt_lookup_max": count}


def translate(params: Any, asked: argparse.Namespace, words: list[str]) -> None:
    """Set in llama.cpp's parameters what was asked of vLLM.

    Args:
        params: ``xllamacpp.CommonParams``; ``n_parallel`` is set already.
        asked: what :func:`helpers.rehearsal.engine_vllm.parse` understood.
        words: the other words after ``vllm serve``.

    Raises:
        SystemExit: an option that cannot be translated, or a value that it cannot have.
    """
    from xllamacpp import ggml_type  # loads llama.cpp

    parser = argparse.ArgumentParser(prog="vllm serve", add_help=False, allow_abbrev=False)
    switch = argparse.BooleanOptionalAction
    for name in ("prefix-caching", "chunked-prefill"):
        parser.add_argument(f"--enable-{name}", action=switch, default=True)
    parser.add_argument("--max-num-batched-tokens", type=count, default=params.n_batch)
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--speculative-config", "-sc", type=json.loads)
    for key, kind in _DRAFTS.items():
        parser.add_argument(f"--speculative-config.{key}", f"-sc.{key}", type=kind, dest=key)
    for name in _SWITCHES:
        parser.add_argument(f"--{name}", action=switch)
    for name in _VALUES:
        parser.add_argument(f"--{name}")
    found, unknown = parser.parse_known_args(words)
    if unknown:
        parser.error(_hint(shlex.join(unknown)))
    longest = min(asked.max_model_len or CONTEXT, CONTEXT)
    params.n_ctx = params.n_parallel * longest  # each slot has its own part
    # A step reads so many prompt tokens; undivided, a whole prompt.
    params.n_batch = found.max_num_batched_tokens if found.enable_chunked_prefill else longest
    params.n_ubatch = min(params.n_ubatch, params.n_batch)
    params.cache_prompt = found.enable_prefix_caching
    if not found.enable_prefix_caching:
        params.cache_ram_mib, params.slot_prompt_similarity = 0, 0.0
    if found.kv_cache_dtype not in KV_TYPES:
        parser.error(_hint(f"--kv-cache-dtype {found.kv_cache_dtype}"))
    stored = getattr(ggml_type, f"GGML_TYPE_{KV_TYPES[found.kv_cache_dtype]}")
    params.cache_type_k = params.cache_type_v = stored
    config = {key: vars(found)[key] for key in _DRAFTS if vars(found)[key] is not None}
    if config or found.speculative_config is not None:
        _speculate(params, parser, config or found.speculative_config)


def _speculate(params: Any, parser: argparse.ArgumentParser, config: Any) -> None:
    """Draft what followed when the last few tokens stood in the text before."""
    from xllamacpp import common_speculative_type as kinds

    config = config if isinstance(config, dict) else {}
    most = config.get("prompt_lookup_max", config.get("prompt_lookup_min", 5))
    least, drafted = config.get("prompt_lookup_min", most), config.get("num_speculative_tokens")
    whole = all(type(number) is int and 0 < number < 2**16 for number in (least, most, drafted))
    if config.get("method") != "ngram" or config.keys() - _DRAFTS or not whole or least > most:
        parser.error(_hint("--speculative-config, but for method ngram, num_speculative_tokens "
                           "and prompt_lookup_min <= prompt_lookup_max, each above 0"))  # fmt: skip
    params.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
    drafts = params.speculative.ngram_simple
    drafts.size_n, drafts.size_m, drafts.min_hits = least, drafted, 1


def _hint(words: str) -> str:
    what = f"the rehearsal's llama.cpp has nothing like {words}; leave it out, or "
    return f"{what}rehearse with vLLM's CPU build (ENGINE=vllm)"
