"""The paced server of the benchmarks as a server of a test."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from helpers.endpoint import Endpoint

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "paced_server.py"


def start(*options: str) -> tuple[subprocess.Popen, Endpoint]:
    """Its process, and its endpoint; ``/log`` there says when it sent each token."""
    pipe = subprocess.PIPE
    server = subprocess.Popen([sys.executable, PROGRAM, *options], stdin=pipe, stdout=pipe)
    url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
    return server, Endpoint(base_url=url, model="mock", api_key="the-server's")


def end(server: subprocess.Popen) -> None:
    """It ends with its standard input."""
    server.stdin.close()
    server.wait(10)
    server.stdout.close()


@contextlib.contextmanager
def serve(*options: str) -> Iterator[Endpoint]:
    """Its endpoint, for as long as the block lasts."""
    server, endpoint = start(*options)
    try:
        yield endpoint
    finally:
        end(server)
