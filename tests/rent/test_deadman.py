"""The script itself, in a shell and against a provider of a few lines."""

import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from helpers.rent import deadman

MACHINES = {
    "vast": (
        {"CONTAINER_ID": "7", "CONTAINER_API_KEY": "own-key"},
        "VAST_URL",
        "/api/v0/instances/7/",
    ),
    "runpod": ({"RUNPOD_POD_ID": "p7", "RUNPOD_API_KEY": "own-key"}, "RUNPOD_URL", "/v2/pods/p7"),
}


@pytest.fixture
def asked():
    """What a provider on loopback was asked, and its address."""
    seen: list[tuple] = []

    class Handler(BaseHTTPRequestHandler):
        def do_DELETE(self):
            seen.append((self.path, self.headers["Authorization"]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield seen, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("provider", MACHINES)
def test_past_its_deadline_a_machine_asks_for_its_own_end(provider, asked, tmp_path):
    """With its own key, once the time is up; until then it only waits, and can be given more."""
    seen, address = asked
    own, url, path = MACHINES[provider]
    env = {"HOME": str(tmp_path), "PATH": "/usr/local/bin:/usr/bin:/bin", url: address, **own}

    def shell(script: str) -> str:
        ended = script.replace("while sleep 5; do", "for turn in 1 2; do") + "\nwait"
        return subprocess.check_output(["sh", "-c", ended], env=env, text=True, timeout=20)

    def deadline() -> int:
        return int((tmp_path / ".llm_course_deadline").read_text())

    shell(deadman.script(provider, 3600))
    first = deadline()
    assert seen == [] and first == pytest.approx(time.time() + 3600, abs=30)
    shell(deadman.script(provider, 9))  # as after a restart: it does not prolong, nor shorten
    assert deadline() == first
    assert int(shell(deadman.extend_command(7200))) == deadline() > first
    shell(deadman.extend_command(-1))
    shell(deadman.script(provider, 3600))
    assert seen == [(path, "Bearer own-key")] * 2
