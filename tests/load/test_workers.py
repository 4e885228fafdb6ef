"""Where the load is made: processes that end with their parent, over SSH, on an executor."""

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import psutil
import pytest
from support.answers import GOOD, whole
from support.listening import listen
from support.waiting import eventually, runs

from helpers import load
from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.load import workers
from helpers.records import Run
from helpers.rent import ssh

QUIET = {"progress": False, "server_every_s": None}
SMALL = load.Synthetic(input_tokens=8, output_tokens=4)


@pytest.fixture
async def good():
    """A server that answers everything well."""

    async def answer(body, writer):
        writer.write(GOOD if body else whole(b'{"data":[]}'))

    server, endpoint = await listen(answer)
    yield endpoint
    server.close()


async def test_a_generator_that_dies_when_it_is_to_begin_is_said_so(tmp_path, monkeypatch):
    """Killed for its memory, say: the sentence with its last word, not a broken pipe."""
    program = """
import os, sys
sys.stdin.readline()
os.write(1, b'{"type":"ready","error":""}\\n')
sys.exit("no memory")
"""
    monkeypatch.setattr(workers, "COMMAND", ["-c", program])
    endpoint = Endpoint(base_url="http://127.0.0.1:9/v1", model="m")
    with pytest.raises(CourseError, match="ended before its run: no memory"):
        await load.run(
            endpoint,
            SMALL,
            load.ClosedLoop(users=1),
            requests=1,
            path=tmp_path / "run.jsonl",
            progress=False,  # the sampler takes its time, so that it is dead when told to go
        )


async def test_an_executor_with_too_few_workers_is_said_so(good, tmp_path, monkeypatch):
    """Half the users a second later are not the load that was asked for."""
    monkeypatch.setattr(workers, "START_IN_S", 1.0)
    path = tmp_path / "run.jsonl"
    with ThreadPoolExecutor(1) as executor, pytest.raises(CourseError, match="too late"):
        await load.run(
            good,
            load.Synthetic(input_tokens=8, output_tokens=4),
            load.ClosedLoop(users=2, think_time_s=0.1),
            duration_s=0.5,
            where=load.OnExecutor(executor, processes=2),
            path=path,
            **QUIET,
        )
    assert {record.user for record in Run.read(path).records} <= {0}


async def test_an_executor_without_a_server_is_said_so(unused_tcp_port, tmp_path):
    """The one sentence, as without an executor, instead of a run full of refusals."""
    with ThreadPoolExecutor(1) as executor, pytest.raises(CourseError, match="does not answer"):
        await load.run(
            Endpoint(base_url=f"http://127.0.0.1:{unused_tcp_port}/v1", model="m"),
            SMALL,
            load.ClosedLoop(users=1),
            requests=1,
            where=load.OnExecutor(executor),
            path=tmp_path / "run.jsonl",
            **QUIET,
        )


async def test_processes_share_the_work(paced, tmp_path):
    """Two processes make the requests of one: the same conversations and users, each once."""
    run = await load.run(
        paced("--ttft", "0.02", "--itl", "0.001"),
        SMALL,
        load.ClosedLoop(users=5),
        requests=31,
        where=load.Local(processes=2),
        path=tmp_path / "run.jsonl",
        **QUIET,
    )
    assert sorted(record.index for record in run.records) == list(range(31))
    assert {record.user for record in run.records} == set(range(5))
    assert len(run.ends) == 2 and not run.interrupted


async def test_from_the_instance_itself(endpoint, instance, settings, tmp_path):
    """The generator, copied over SSH, runs on the instance and its records come back here."""
    with ssh.connect(instance, settings) as client:
        run = await load.run(
            endpoint,
            SMALL,
            load.ClosedLoop(users=2),
            requests=6,
            where=load.OverSSH(client),
            path=tmp_path / "run.jsonl",
            progress=False,
        )
    assert len(run.ok) == 6 and sum(record.output_tokens for record in run.records) == 24


async def test_an_executor_of_two_workers_gives_the_same(paced, tmp_path):
    """Two dask worker processes make one run: every conversation once, on one time axis."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        run = await load.run(
            paced("--ttft", "0.02", "--itl", "0.001"),
            SMALL,
            load.Poisson(rate_per_s=40),
            requests=31,
            where=load.OnExecutor(client.get_executor(), processes=2),
            path=tmp_path / "run.jsonl",
            **QUIET,
        )
    assert sorted(record.index for record in run.records) == list(range(31))
    expected = load.Poisson(rate_per_s=40).times()
    assert [r.scheduled_s for r in run.records] == pytest.approx(
        list(islice(expected, 31)), abs=1e-6
    )
    assert all(-0.001 <= record.lag_s < 0.2 for record in run.records) and len(run.ends) == 2


def test_killing_the_caller_leaves_readable_records(paced, tmp_path):
    """A kernel killed in mid-run leaves every finished record, and its generator ends too."""
    endpoint, path = paced("--ttft", "0.02", "--itl", "0.001"), tmp_path / "run.jsonl"
    code = (
        "import asyncio; from helpers import load; from helpers.endpoint import Endpoint\n"
        f"asyncio.run(load.run(Endpoint(base_url={endpoint.base_url!r}, model='m'), "
        "load.Synthetic(output_tokens=4), load.ClosedLoop(users=4), duration_s=60, "
        f"path={str(path)!r}, progress=False))"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and (not path.exists() or path.stat().st_size < 20_000):
        time.sleep(0.05)
    started = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = Run.read(path)
    assert len(run.ok) > 20 and run.interrupted
    path.write_bytes(path.read_bytes()[:-40])  # as if killed within a write
    assert len(Run.read(path).records) >= len(run.records) - 1
    assert started
    assert eventually(lambda: not any(map(runs, started))), "the generator outlived its parent"
