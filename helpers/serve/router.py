"""Several servers behind one address: ``vllm-router``, a process of its own on this machine."""

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import requests

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
        *("vllm-router", "--worker-urls", *workers),
        *("--policy", policy, "--host", "127.0.0.1", "--port", str(port)),
        *("--prometheus-port", str(metrics_port), "--log-level", "warning"),
        # How soon a worker that died or came back is noticed; the default is minutes.
        *("--worker-startup-check-interval", "1", "--health-check-interval-secs", "1"),
        *("--health-failure-threshold", "1", "--health-success-threshold", "1"),
        *("--cb-timeout-duration-secs", "5"),
    ]


@dataclass
class Router:
    """A running ``vllm-router``; use it in a ``with`` block, or call :meth:`close`.

    Args:
        endpoint: what clients use instead of one server's endpoint.
        policy: how it chooses a worker.
        process: the router's process.
        log_file: what it writes.
    """

    endpoint: Endpoint
    policy: str
    process: subprocess.Popen
    log_file: Path

    @property
    def workers(self) -> list[str]:
        """Roots of the servers that it uses now."""
        answer = requests.get(f"{self.endpoint.origin}/list_workers", timeout=5)
        return sorted(answer.json()["urls"])

    def add(self, endpoint: Endpoint) -> None:
        """Let a further server join; requests go to it from now on.

        Raises:
            CourseError: the router does not take it.
        """
        self._tell("add_worker", endpoint)

    def remove(self, endpoint: Endpoint) -> None:
        """Send no further requests to a server; what runs there ends in peace.

        Raises:
            CourseError: the router does not know it.
        """
        self._tell("remove_worker", endpoint)

    def log(self, lines: int = 20) -> str:
        """The last lines that the router wrote."""
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])

    def close(self) -> None:
        """End the router; the servers go on."""
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log_file.unlink(missing_ok=True)

    def __enter__(self) -> "Router":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _tell(self, what: str, endpoint: Endpoint) -> None:
        answer = requests.post(
            f"{self.endpoint.origin}/{what}", params={"url": endpoint.origin}, timeout=60
        )
        if not answer.ok:
            raise CourseError(f"vllm-router refused to {what}: {answer.text[:300]}")


def start(endpoints: Sequence[Endpoint], policy: str = "cache_aware") -> Router:
    """Start a router in front of several servers of one model and wait until it answers.

    Args:
        endpoints: the servers.
        policy: how to choose among them: ``random``, ``round_robin``, ``power_of_two`` (the less
            busy of two), ``cache_aware`` (the one that has seen the longest part of this prompt)
            or ``consistent_hash`` (by the ``X-Session-ID`` header, which ``load.run`` sends with
            each conversation; requests without it all go to one server).

    Raises:
        CourseError: no server, an unknown policy, or the router does not start.
    """
    if policy not in POLICIES:
        raise CourseError(f"there is no policy {policy!r}", f"one of {', '.join(POLICIES)}")
    if not endpoints or len({one.model for one in endpoints}) != 1:
        raise CourseError("a router needs servers, all of one model", "see the endpoints' models")
    program = shutil.which("vllm-router", path=str(Path(sys.executable).parent)) or shutil.which(
        "vllm-router"
    )
    if program is None:
        raise CourseError(
            "vllm-router is not installed",
            "pip install vllm-router (ready made for Linux; elsewhere pip builds it with Rust)",
        )
    port, metrics_port = _free_ports(2)
    log = Path(tempfile.mkstemp(prefix="vllm-router-", suffix=".log")[1])
    words = command([one.origin for one in endpoints], policy, port, metrics_port)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [program, *words[1:]], stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    endpoint = replace(
        endpoints[0],
        base_url=f"http://127.0.0.1:{port}/v1",
        hardware=f"{len(endpoints)} x {endpoints[0].hardware}",
    )
    router = Router(endpoint=endpoint, policy=policy, process=process, log_file=log)
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"{endpoint.origin}/health", timeout=5).ok:
                return router
        time.sleep(0.1)
    said = router.log(5)
    router.close()
    raise CourseError(f"vllm-router did not start: {said or 'no output'}", "do the servers answer?")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
