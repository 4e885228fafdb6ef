"""Several servers behind one address: ``vllm-router``, a process of its own on this machine."""

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO
from urllib.parse import quote

from helpers.endpoint import Endpoint
from helpers.errors import CourseError

POLICIES = ("random", "round_robin", "power_of_two", "cache_aware", "consistent_hash")
START_TIMEOUT_S = 60.0


def command(workers: Sequence[str], policy: str, port: int, metrics_port: int) -> list[str]:
    """The command line of the router.

    Args:
        workers: root of each server, without ``/v1``.
        policy: one of :data:`POLICIES`.
        port: where it listens on 127.0.0.1.
        metrics_port: where it shows its own Prometheus metrics.
    """
    return [
        *(sys.executable, "-m", "vllm_router.launch_router", "--worker-urls", *workers),
        *("--policy", policy, "--host", "127.0.0.1", "--port", str(port)),
        *("--prometheus-port", str(metrics_port), "--log-level", "warning"),
        # How soon a worker that died or came back is noticed; the default is minutes.
        *("--worker-startup-check-interval", "1", "--health-check-interval-secs", "1"),
        *("--health-failure-threshold", "1", "--health-success-threshold", "1"),
        *("--cb-timeout-duration-secs", "5"),
    ]


@dataclass(frozen=True, kw_only=True)
class Router:
    """A running ``vllm-router``.

    Args:
        endpoint: what clients use instead of one server's endpoint.
        process: the router's process.
    """

    endpoint: Endpoint
    process: subprocess.Popen

    def add(self, endpoint: Endpoint) -> None:
        """Let a further server join; requests go to it from now on.

        Raises:
            CourseError: the router does not take it.
        """
        answer = self.endpoint.call(f"/add_worker?url={quote(endpoint.origin)}", {}, timeout_s=60)
        if not answer.is_success:
            raise CourseError(f"vllm-router did not take {endpoint.origin}: {answer.text[:300]}")


@contextlib.contextmanager
def start(endpoints: Sequence[Endpoint], policy: str = "cache_aware") -> Iterator[Router]:
    """A router in front of several servers of one model, ready; ended on leaving the ``with``.

    Args:
        endpoints: the servers; they go on when the router ends.
        policy: how to choose among them: ``random``, ``round_robin``, ``power_of_two`` (the less
            busy of two), ``cache_aware`` (the one that has seen the longest part of this prompt)
            or ``consistent_hash`` (by the ``X-Session-ID`` header, which ``load.run`` sends with
            each conversation; requests without it all go to one server).

    Raises:
        CourseError: no server, or the router does not start.
    """
    if len({one.model for one in endpoints}) != 1:
        raise CourseError("a router needs servers, all of one model", "see the endpoints' models")
    port = free_port()
    words = command([one.origin for one in endpoints], policy, port, free_port())
    base_url, hardware = f"http://127.0.0.1:{port}/v1", endpoints[0].hardware
    endpoint = replace(endpoints[0], base_url=base_url, hardware=f"{len(endpoints)} x {hardware}")
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process,
    ):
        try:
            _wait_healthy(endpoint, process, log)
            yield Router(endpoint=endpoint, process=process)
        finally:
            process.kill()


def _wait_healthy(endpoint: Endpoint, process: subprocess.Popen, log: IO[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(ConnectionError):
            if endpoint.call("/health", timeout_s=5).is_success:
                return
        time.sleep(0.1)
    log.seek(0)
    said = log.read()[-1000:].decode(errors="replace") or "no output"
    hint = "is it installed (pip install vllm-router), and does each server answer?"
    raise CourseError(f"vllm-router did not start: {said}", hint)


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
