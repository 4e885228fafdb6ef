"""The search over real HTTP, against a server that behaves like a GPU and knows its capacity."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from support.virtual_gpu import VirtualGPU

from helpers import load, measure
from helpers.endpoint import Endpoint

GPU = VirtualGPU(a=4, b=1, prefill=10_000, prompt=40, out=16, cv=0.5)
PROMISE = measure.Objective(ttft_ms=500, tpot_ms=24)


def carries(gpu: VirtualGPU) -> int:
    """The most users for whom it keeps the promise, in virtual time."""
    users = 2
    while True:
        run = gpu.play(users + 1, 300, spread_s=gpu.answer_s(users))
        if measure.margin(run, PROMISE).value > 1:
            return users
        users += 1


async def test_the_search_finds_what_a_gpu_carries(tmp_path):
    """Within a tenth (and a user), by default settings, and every token it saw was a real one."""
    program = Path(__file__).parents[1] / "support" / "gpu_server.py"
    pipe = subprocess.PIPE
    costs = (str(cost) for cost in (GPU.a, GPU.b, GPU.prefill))
    server = subprocess.Popen([sys.executable, program, *costs], stdin=pipe, stdout=pipe)
    endpoint = Endpoint(
        base_url=f"http://127.0.0.1:{int(server.stdout.readline())}/v1", model="gpu"
    )
    lengths = [load.Lengths(mean=mean, stdev=mean / 2) for mean in (GPU.prompt, GPU.out)]
    work = load.Synthetic(input_tokens=lengths[0], output_tokens=lengths[1])
    try:
        runs = await load.search(endpoint, work, PROMISE, folder=tmp_path, progress=False)
        with urllib.request.urlopen(f"{endpoint.origin}/late") as answer:
            late_s = json.load(answer)
    finally:
        server.stdin.close()
        server.wait(10)
    found, true = measure.capacity(runs, PROMISE), carries(GPU)
    print(f"\n{found}; in truth {true}; the server was late by {1e3 * late_s:.1f} ms (p95)")
    if late_s > 0.01:
        pytest.skip("this machine is too busy to pace a server")
    assert not any(run.failed or run.interrupted for run in runs)
    assert abs(found.load - true) <= 0.1 * true + 1
