"""The server's own view: the Prometheus text of vLLM and of llama.cpp, read into one form."""

import json
import math
from pathlib import Path

from helpers.endpoint import Endpoint

_ASSET = Path(__file__).parents[2] / "assets" / "server_metrics.json"
NAMES: dict[str, list[str]] = json.loads(_ASSET.read_text())  # here -> there, without prefixes

BROKEN = (ValueError, LookupError, TypeError, AttributeError)  # what is no Prometheus text


def server_metrics(endpoint: Endpoint) -> dict[str, float] | None:
    """What the server says of itself now: vLLM's and llama.cpp's metrics under the same names.

    ====================  =======================================  ===============================
    here                  vLLM (each begins with ``vllm:``)        llama.cpp (``llamacpp:``)
    ====================  =======================================  ===============================
    running               num_requests_running                     requests_processing
    waiting               num_requests_waiting                     requests_deferred
    kv_cache_usage        kv_cache_usage_perc, a share of 1
    prompt_tokens_total   prompt_tokens_total                      prompt_tokens_total
    output_tokens_total   generation_tokens_total                  tokens_predicted_total
    prefix_cache_hits     prefix_cache_hits_total, tokens
    prefix_cache_queries  prefix_cache_queries_total, tokens
    ttft_s_sum, _count    time_to_first_token_seconds_sum, _count
    itl_s_sum, _count     inter_token_latency_seconds_sum, _count  tokens_predicted_seconds_total
    ====================  =======================================  ===============================

    Older versions of vLLM say gpu_cache_usage_perc, gpu_prefix_cache_hits_total,
    gpu_prefix_cache_queries_total and time_per_output_token_seconds_sum, _count instead.

    Args:
        endpoint: the server.

    Returns:
        One reading of its ``/metrics``, without what the server does not say; ``None`` when it
        has none, or a broken one. Requests now ``running`` and ``waiting``; sums of seconds of
        TTFT and of the gaps between tokens (llama.cpp: seconds spent generating), and over how
        many they go; all else since the server started.
    """
    try:
        answer = endpoint.call("/metrics", timeout_s=5)
        return parse(answer.text) if answer.is_success else None
    except (ConnectionError, *BROKEN):
        return None


def parse(text: str) -> dict[str, float]:
    """Read Prometheus text; over several engines on one server counts add up, shares are averaged.

    >>> parse("llamacpp:requests_processing 3\\n")
    {'running': 3.0}
    """
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not math.isnan(sample.value):
                name = sample.name.rpartition(":")[2]
                found.setdefault(name, []).append(sample.value)
    reading = {}
    for name, names in NAMES.items():
        if told := next((found[one] for one in names if one in found), None):
            reading[name] = sum(told) / (len(told) if name == "kv_cache_usage" else 1)
    return reading
