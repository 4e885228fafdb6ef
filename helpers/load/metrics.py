"""The server's own view: the Prometheus text of vLLM and of llama.cpp, read into one form."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from helpers.endpoint import Endpoint


def _called(*names: str) -> Any:
    """Make a field with its names on vLLM and on llama.cpp, without their prefixes."""
    return field(default=None, metadata={"names": names})


@dataclass(frozen=True, kw_only=True)
class ServerMetrics:
    """One reading of ``/metrics``; ``None`` where the server does not say.

    Args:
        running: requests being generated now.
        waiting: requests in the queue now.
        kv_cache_usage: part of the KV cache in use, 0 to 1.
        prompt_tokens_total: prompt tokens read since the server started.
        output_tokens_total: tokens generated since the server started.
        prefix_cache_hits: prompt tokens found in the prefix cache, of ``prefix_cache_queries``.
        prefix_cache_queries: see there.
        ttft_s_sum: the server's histogram of TTFT: sum of seconds over ``ttft_count`` requests.
        ttft_count: see there.
        itl_s_sum: the same for the gaps between tokens (llama.cpp: seconds spent generating).
        itl_count: see there.
    """

    running: float | None = _called("num_requests_running", "requests_processing")
    waiting: float | None = _called("num_requests_waiting", "requests_deferred")
    kv_cache_usage: float | None = _called("kv_cache_usage_perc")
    prompt_tokens_total: float | None = _called("prompt_tokens_total")
    output_tokens_total: float | None = _called("generation_tokens_total", "tokens_predicted_total")
    prefix_cache_hits: float | None = _called("prefix_cache_hits_total")
    prefix_cache_queries: float | None = _called("prefix_cache_queries_total")
    ttft_s_sum: float | None = _called("time_to_first_token_seconds_sum")
    ttft_count: float | None = _called("time_to_first_token_seconds_count")
    itl_s_sum: float | None = _called(
        "inter_token_latency_seconds_sum", "tokens_predicted_seconds_total"
    )
    itl_count: float | None = _called("inter_token_latency_seconds_count")


def server_metrics(endpoint: Endpoint) -> ServerMetrics | None:
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
        One reading of its ``/metrics``, or ``None`` when it has none, or a broken one.
    """
    try:
        answer = endpoint.call("/metrics", timeout_s=5)
        return parse(answer.text) if answer.is_success else None
    except (ConnectionError, ValueError, LookupError, TypeError, AttributeError):
        return None


def parse(text: str) -> ServerMetrics:
    """Read Prometheus text; over several engines on one server counts add up, shares are averaged.

    >>> parse("llamacpp:requests_processing 3\\n").running
    3.0
    """
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not math.isnan(sample.value):
                name = sample.name.rpartition(":")[2]
                found.setdefault(name, []).append(sample.value)
    values = {}
    for metric in fields(ServerMetrics):
        names = metric.metadata["names"]
        told = next((found[one] for one in (*names, *map(_older, names)) if one in found), [])
        if told:
            engines = len(told) if metric.name == "kv_cache_usage" else 1
            values[metric.name] = sum(told) / engines
    return ServerMetrics(**values)


def _older(name: str) -> str:
    """What vLLM called it until 0.10."""
    name = name.replace("kv_cache", "gpu_cache").replace("prefix_cache", "gpu_prefix_cache")
    return name.replace("inter_token_latency", "time_per_output_token")
