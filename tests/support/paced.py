"""The paced server of the benchmarks as a server of a test."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from helpers.endpoint import Endpoint

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "paced_server.py"


@contextlib.contextmanager
def serve(*options: str) -> Iterator[Endpoint]:
    """Its endpoint; ``/log`` there says when it sent each token of each request."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, PROGRAM, *options], stdin=pipe, stdout=pipe) as server:
        port = int(server.stdout.readline())
        yield Endpoint(base_url=f"http://127.0.0.1:{port}/v1", model="mock", api_key="the-server's")
        server.stdin.close()
