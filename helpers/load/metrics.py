"""The server's own view: the Prometheus text of vLLM and of llama.cpp, read into one form."""

import contextlib
import http.client
import math
import threading
import time
import urllib.request
from dataclasses import asdict, dataclass
from typing import ClassVar

from prometheus_client.parser import text_string_to_metric_families

from helpers.errors import CourseError

# What each server calls it; the first name that is there is taken.
NAMES = {
    "running": ("vllm:num_requests_running", "llamacpp:requests_processing"),
    "waiting": ("vllm:num_requests_waiting", "llamacpp:requests_deferred"),
    "kv_cache_usage": ("vllm:kv_cache_usage_perc", "llamacpp:kv_cache_usage_ratio"),
    "prompt_tokens_total": ("vllm:prompt_tokens_total", "llamacpp:prompt_tokens_total"),
    "output_tokens_total": ("vllm:generation_tokens_total", "llamacpp:tokens_predicted_total"),
    "prefix_cache_hits": ("vllm:prefix_cache_hits_total",),
    "prefix_cache_queries": ("vllm:prefix_cache_queries_total",),
    "ttft_s_sum": ("vllm:time_to_first_token_seconds_sum",),
    "ttft_count": ("vllm:time_to_first_token_seconds_count",),
    "itl_s_sum": (
        "vllm:inter_token_latency_seconds_sum",
        "vllm:time_per_output_token_seconds_sum",
        "llamacpp:tokens_predicted_seconds_total",
    ),
    "itl_count": (
        "vllm:inter_token_latency_seconds_count",
        "vllm:time_per_output_token_seconds_count",
    ),
}


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
        itl_s_sum: likewise of the gaps between tokens (llama.cpp: seconds spent generating).
        itl_count: see there.
    """

    running: float | None = None
    waiting: float | None = None
    kv_cache_usage: float | None = None
    prompt_tokens_total: float | None = None
    output_tokens_total: float | None = None
    prefix_cache_hits: float | None = None
    prefix_cache_queries: float | None = None
    ttft_s_sum: float | None = None
    ttft_count: float | None = None
    itl_s_sum: float | None = None
    itl_count: float | None = None


def parse(text: str) -> ServerMetrics:
    """Read Prometheus text; counts of several engines on one server are added up, shares averaged.

    Raises:
        CourseError: the text is no such text.

    >>> parse("llamacpp:requests_processing 3\\n").running
    3.0
    """
    found: dict[str, list[float]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if not math.isnan(sample.value):
                    found.setdefault(sample.name, []).append(sample.value)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise CourseError("the server's /metrics is not Prometheus text") from None
    values = {
        field: next((sum(found[name], 0.0) for name in names if name in found), None)
        for field, names in NAMES.items()
    }
    if usage := next((found[name] for name in NAMES["kv_cache_usage"] if name in found), None):
        values["kv_cache_usage"] = sum(usage) / len(usage)
    return ServerMetrics(**values)


def fetch(origin: str, *, api_key: str = "none", timeout_s: float = 5.0) -> ServerMetrics | None:
    """Read ``/metrics`` under ``origin``; ``None`` when the server has none, or a broken one."""
    headers = {"Authorization": f"Bearer {api_key}"}
    request = urllib.request.Request(f"{origin}/metrics", headers=headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
            return parse(answer.read().decode())
    except (OSError, ValueError, CourseError, http.client.HTTPException):
        return None


class ServerSampler:
    """Reads ``/metrics`` before a run, every ``every_s`` seconds during it, and after it.

    Args:
        endpoint: the server.
        every_s: time between readings.
        file: its ``add`` takes each reading with its time ``t_s`` in the run.
    """

    def __init__(self, endpoint, every_s: float, file) -> None:
        self.endpoint, self.every_s, self.file = endpoint, every_s, file
        self.began: float | None = None
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def start(self) -> None:
        """Take the reading before the run; further ones follow. Time 0 is its end."""
        answers = self._sample()
        self.began = time.perf_counter()
        if answers:
            self.thread.start()

    def stop(self) -> None:
        """Take the reading after the run."""
        self.over.set()
        if self.thread.ident:
            self.thread.join()
            self._sample()

    def _follow(self) -> None:
        while not self.over.wait(self.every_s):
            self._sample()

    def _sample(self) -> bool:
        at = time.perf_counter()
        reading = fetch(self.endpoint.origin, api_key=self.endpoint.api_key)
        if reading is not None:
            middle = (at + time.perf_counter()) / 2
            at = 0.0 if self.began is None else middle - self.began
            values = {name: value for name, value in asdict(reading).items() if value is not None}
            self.file.add("server", {"t_s": round(at, 3), **values})
        return reading is not None


class GpuSampler:
    """Reads ``nvidia-smi`` over SSH twice a second during a run, where there is one.

    Args:
        ssh: connection to the machine.
        file: its ``add`` takes each reading with its time ``t_s`` in the run.
    """

    FIELDS: ClassVar = {
        "index": "gpu",
        "utilization.gpu": "gpu_busy",
        "memory.used": "memory_mib",
        "power.draw": "power_w",
    }

    def __init__(self, ssh, file) -> None:
        self.ssh, self.file = ssh, file

    def start(self) -> None:
        """Start reading; a machine without ``nvidia-smi`` ends it at once, silently."""
        self.began = time.perf_counter()
        query = ",".join(self.FIELDS)
        command = f"nvidia-smi --query-gpu={query} --format=csv,noheader,nounits -lms 500"
        self.channel = self.ssh.get_transport().open_session()
        self.channel.exec_command(command)
        threading.Thread(target=self._follow, daemon=True).start()

    def stop(self) -> None:
        """Stop reading."""
        if hasattr(self, "channel"):
            self.channel.close()

    def _follow(self) -> None:
        for line in self.channel.makefile("r"):
            reading = {}
            for name, value in zip(self.FIELDS.values(), line.split(","), strict=False):
                with contextlib.suppress(ValueError):  # "[N/A]" or a message
                    reading[name] = float(value)
            if reading:
                self.file.add("gpu", {"t_s": round(time.perf_counter() - self.began, 3), **reading})
