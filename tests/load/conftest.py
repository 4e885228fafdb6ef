"""A server that paces its tokens exactly, for tests of the load."""

import pytest
from support import paced as servers

from helpers.endpoint import Endpoint


@pytest.fixture
def paced():
    """Start the paced server with given options; yields a function that returns its Endpoint."""
    started = []

    def start(*options: str) -> Endpoint:
        server, endpoint = servers.start(*options)
        started.append(server)
        return endpoint

    start.kill = lambda: started[-1].kill()
    yield start
    for server in started:
        servers.end(server)
