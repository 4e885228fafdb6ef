"""``ENGINE=vllm``: a rehearsal whose machines serve with the real vLLM, and its bad luck."""

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from support.vllm_server import VLLM_ENV, needs_vllm
from support.waiting import ours

from helpers import load, measure, rent, tools
from helpers.choose import models
from helpers.errors import CourseError
from helpers.rent import guard, ssh
from helpers.serve import spec as serving
from helpers.serve.spec import ServingSpec

pytestmark = needs_vllm
SILENT = {"progress": lambda line: None}


@pytest.fixture
def on_vllm(own_rehearsal):
    """Settings of a rehearsal of the test's own that serves with vLLM."""
    return own_rehearsal.model_copy(update={"engine": "vllm", "vllm_env": VLLM_ENV})


@tools.tool
def track_parcel(number: str) -> dict:
    """Find out where a parcel is.

    Args:
        number: Parcel number
    """
    return {"status": {"48213": "in Lyon", "7": "lost"}[number]}


async def test_the_whole_rental_with_the_real_engine(on_vllm, tmp_path):
    """Rent, onstart, readiness, tunnel, load, a function call, destroy, with what readers run."""
    provider, said = rent.connect(on_vllm), []
    course = models.spec(serving.MISTRAL_AWQ, on_vllm)
    gpus = ("--quantization", "awq", "--gpu-memory-utilization", "0.9")
    key = ("--api-key", "a-key-of-the-test")
    spec = replace(course, extra_args=(*course.extra_args, *gpus, *key))
    with (
        guard.rented(provider, spec, "tests", on_vllm, **SILENT) as machine,
        ssh.tunnel(machine, on_vllm) as tunnel,
    ):
        endpoint = tunnel.endpoint(
            api_key=key[1], progress=said.append, log=lambda: provider.logs(machine.id, 200)
        )
        assert endpoint.model == "SmolLM2-135M-Instruct-tools"
        assert endpoint.engine == "vLLM 0.32.0" and "CPU cores" in endpoint.title
        assert "disconnected" in said[0]  # by the tunnel, behind which nobody listens yet
        with ssh.connect(machine, on_vllm) as client:
            _, out, _ = client.exec_command("cat vllm.log")
            log = out.read().decode()
            assert key[1] not in log
            assert f"answers in place of {serving.MISTRAL_AWQ}" in log
            assert "without a meaning here: --quantization awq --gpu-memory-utilization 0.9" in log
            work = load.Synthetic(input_tokens=16, output_tokens=24)
            users, options = load.ClosedLoop(users=2), {"requests": 4, "progress": False}
            far = await load.run(endpoint, work, users, path=tmp_path / "far.jsonl", **options)
            near = await load.run(
                endpoint,
                work,
                users,
                path=tmp_path / "near.jsonl",
                where=load.OverSSH(client),
                **options,
            )
        for run in (far, near):
            assert [record.output_tokens for record in run.ok] == [24] * 4, run.records
            assert measure.agreement(run).loc["output tokens", "ratio"] == 1
        talk = await tools.run_tools(endpoint, "Where is parcel 48213?", [track_parcel])
        assert [step.what for step in talk.calls] == ['track_parcel({"number": "48213"})']
        await _other_options(machine, tunnel, on_vllm, work, tmp_path / "levers.jsonl")
    assert not provider.instances()


async def _other_options(machine, tunnel, settings, work, path):
    """Notebook 11's options on vLLM itself, after a restart: each has the effect it is set for."""
    guess = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 2}
    guess["prompt_lookup_min"] = 1
    options = [
        "--max-num-seqs",
        "2",
        "--no-enable-prefix-caching",
        "--enable-prompt-tokens-details",
    ]
    options += ["--speculative-config", json.dumps(guess), "--max-num-batched-tokens", "256"]
    if "avx512f" in Path("/proc/cpuinfo").read_text():  # vLLM needs it for this
        options += ["--kv-cache-dtype", "fp8"]

    def log() -> str:
        return ssh.run(machine, settings, "cat vllm.log")

    def room() -> int:
        return int(re.findall(r"KV cache size: ([\d,]+) tokens", log())[-1].replace(",", ""))

    before = room()
    ssh.restart(machine, ServingSpec(extra_args=tuple(options)), settings)
    endpoint = tunnel.endpoint(poll_s=0.5, timeout_s=180, log=log)
    assert room() >= 1.9 * before or "fp8" not in options
    repeat = replace(work, shared_prefix_tokens=200)
    run = await load.run(
        endpoint, repeat, load.ClosedLoop(users=4), requests=8, path=path, progress=False
    )
    assert len(run.ok) == 8 and not any(record.cached_tokens for record in run.ok)
    assert max(sample["running"] for sample in run.samples) <= 2
    said = endpoint.call("/metrics").text
    assert float(re.search(r"spec_decode_num_draft_tokens_total{.*?} (\S+)", said)[1]) > 0


def test_a_server_that_dies_while_loading_shows_its_last_words(on_vllm):
    """vLLM's own complaint reaches the reader, at once and not after the time-out."""
    provider, spec = rent.connect(on_vllm), ServingSpec(extra_args=("--no-such-option", "1"))
    with (
        guard.rented(provider, spec, "tests", on_vllm, **SILENT) as machine,
        ssh.tunnel(machine, on_vllm) as tunnel,
        pytest.raises(CourseError, match=r"(?s)gave up:.*unrecognized arguments: --no-such-option"),
    ):
        tunnel.endpoint(timeout_s=120, poll_s=0.5, log=lambda: provider.logs(machine.id, 20))


@pytest.mark.parametrize(
    ("end", "so_far"),
    [("destroyed", "Worker pid"), ("left idle", "EngineCore pid"), ("killed", "EngineCore pid")],
)
def test_nothing_is_left_of_a_server_that_was_still_loading(on_vllm, end, so_far):
    """vLLM is several processes, a gigabyte each: all go with the machine, however it ends."""
    mine = on_vllm.model_copy(update={"rehearsal_idle_s": 3 if end == "left idle" else 1800})
    provider = rent.connect(mine)
    machine = guard.rent(provider, ServingSpec(), "tests", mine, **SILENT)
    wait_for(lambda: so_far in provider.logs(machine.id, 50), 180)
    (daemon,) = [p for p in ours(mine.rehearsal_home) if "helpers.rehearsal.instance" in line(p)]
    group = [p for p in psutil.process_iter() if group_of(p) == daemon.pid]
    shared = {name for p in group for name in re.findall(r"/dev/shm/\S+", maps(p))}
    assert len(group) > 3  # shell, tee, the one that answers, its engine
    assert shared or so_far != "Worker pid"
    if end == "destroyed":
        guard.destroy(provider, machine.id)
    elif end == "killed":
        daemon.kill()
    _, alive = psutil.wait_procs(group, timeout=30)
    assert not alive
    wait_for(lambda: not any(Path(name).exists() for name in shared), 10)


def group_of(process: psutil.Process) -> int:
    """The process group it belongs to, 0 when it has gone."""
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return 0


def maps(process: psutil.Process) -> str:
    """What it has mapped into its memory."""
    try:
        return Path(f"/proc/{process.pid}/maps").read_text()
    except OSError:
        return ""


def line(process: psutil.Process) -> str:
    """Its command line, empty when it has gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def wait_for(true, timeout_s: float) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.1)
