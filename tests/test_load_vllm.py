"""The load generator against real vLLM, in the environment that ``vllm_env.sh`` makes."""

import os
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from helpers import load, measure
from helpers.endpoint import Endpoint
from helpers.settings import PROJECT

VLLM_ENV = Path(os.environ.get("VLLM_ENV", PROJECT / ".venv-vllm"))
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        not (VLLM_ENV / "model" / "config.json").exists(),
        reason="no vLLM environment: bash tests/vllm_env.sh",
    ),
]


@pytest.fixture(scope="module")
def vllm(tmp_path_factory):
    """A running `vllm serve` on the CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = f"--served-model-name m --host 127.0.0.1 --port {port} --max-model-len 1024"
    log = tmp_path_factory.mktemp("vllm") / "log"
    command = [VLLM_ENV / "bin" / "vllm", "serve", VLLM_ENV / "model", *words.split()]
    server = subprocess.Popen(
        [*command, "--enforce-eager", "--max-num-seqs", "32"],
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"},
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
    )
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 240
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{url}/health").close()
            break
        except OSError:
            time.sleep(1)
    else:
        pytest.fail(log.read_text()[-2000:])
    yield Endpoint(base_url=f"{url}/v1", model="m", engine="vLLM", hardware="CPU")
    server.terminate()
    server.wait(30)


async def test_our_numbers_are_the_servers(vllm, tmp_path):
    """Output tokens equal its counter; TTFT and time per token agree with its histograms."""
    work = load.Synthetic(input_tokens=64, output_tokens=48)
    for users in (1, 8):
        run = await load.run(
            vllm,
            work,
            load.ClosedLoop(users=users),
            requests=4 * users + 4,
            path=tmp_path / f"{users}.jsonl",
            progress=False,
        )
        assert all(record.ok and record.output_tokens == 48 for record in run.records), run
        table = measure.agreement(run)
        print(f"\n{run}\n{table.round(4)}")
        assert table.loc["output tokens", "ratio"] == 1
        assert table["ratio"].to_list() == pytest.approx([1, 1, 1], rel=0.05)
