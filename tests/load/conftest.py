"""A server that paces its tokens exactly, for tests of the load."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.endpoint import Endpoint


@pytest.fixture
def paced():
    """Start the paced server with given options; yields a function that returns its Endpoint."""
    started = []

    def start(*options: str) -> Endpoint:
        program = Path(__file__).parents[1] / "benchmarks" / "paced_server.py"
        pipe = subprocess.PIPE
        server = subprocess.Popen([sys.executable, program, *options], stdin=pipe, stdout=pipe)
        started.append(server)
        return Endpoint(base_url=f"http://127.0.0.1:{int(server.stdout.readline())}/v1", model="m")

    start.kill = lambda: started[-1].kill()
    yield start
    for server in started:
        server.stdin.close()
        server.wait(10)
