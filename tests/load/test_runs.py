"""The load generator against the rehearsal's real engine and against the paced server."""

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import textwrap
import time
import urllib.request

import psutil
import pytest
from support.waiting import runs

from helpers import load, measure
from helpers.endpoint import Endpoint
from helpers.errors import CourseError, Stopped
from helpers.measure import most_at_once
from helpers.records import Run

QUIET = {"progress": False, "server_every_s": None}
SMALL = load.Synthetic(input_tokens=8, output_tokens=4)


async def test_output_tokens_equal_the_engines_own_counter(endpoint, tmp_path):
    """The records' sum is the engine's delta, to the token: nothing is missed or invented."""
    before = load.server_metrics(endpoint)["output_tokens_total"]
    work = load.Synthetic(input_tokens=16, output_tokens=8)
    runs = await load.sweep(
        endpoint, work, users=(1, 4), requests=16, folder=tmp_path, progress=False
    )
    after = load.server_metrics(endpoint)["output_tokens_total"]
    counted = sum(record.output_tokens for run in runs for record in run.records)
    assert counted == after - before
    assert all(record.output_tokens == 8 and record.ok for run in runs for record in run.records)
    samples = runs[-1].samples
    assert samples[-1]["output_tokens_total"] - samples[0]["output_tokens_total"] == 16 * 8


async def test_a_run_reads_back_as_it_was(paced, tmp_path):
    """A saved run gives the same records, and its file holds no key."""
    endpoint = Endpoint(**{**vars(paced("--ttft", "0.01", "--itl", "0.001")), "api_key": "s3cret"})
    before = time.time()
    run = await load.run(
        endpoint, SMALL, load.ClosedLoop(users=2), requests=6, path=tmp_path / "a.jsonl", **QUIET
    )
    assert Run.read(run.path) == run and before < run.began < time.time()
    assert "s3cret" not in run.path.read_text() and "s3cret" not in repr(run)
    assert len(run.frame()) == 6 and run.frame()["output_tokens"].sum() == 24


@pytest.mark.parametrize(
    ("arrivals", "expected"),
    [
        (load.Constant(every_s=0.05), [0.0, 0.05, 0.1, 0.15]),
        (load.Replay(times_s=(0.0, 0.01, 0.1, 0.105)), [0.0, 0.01, 0.1, 0.105]),
    ],
    ids=str,
)
async def test_open_loop_keeps_its_schedule(paced, tmp_path, arrivals, expected):
    """Requests leave when scheduled though answers take longer, and latency counts from there."""
    endpoint = paced("--ttft", "0.3", "--itl", "0.001")
    run = await load.run(
        endpoint, SMALL, arrivals, requests=4, path=tmp_path / "run.jsonl", **QUIET
    )
    assert [record.scheduled_s for record in run.records] == pytest.approx(expected)
    assert all(0 <= record.lag_s < 0.05 for record in run.records)
    assert all(record.origin_s == record.scheduled_s for record in run.records)
    assert all(0.3 <= record.ttft_s < 0.45 for record in run.records)


async def test_times_are_the_servers(paced, tmp_path):
    """TTFT and gaps are those of the server's own log, but for the client's small error."""
    endpoint = paced("--ttft", "0.1", "--itl", "0.01")
    run = await load.run(
        endpoint,
        load.Synthetic(input_tokens=8, output_tokens=20),
        load.ClosedLoop(users=20),
        requests=100,
        path=tmp_path / "run.jsonl",
        **QUIET,
    )
    with urllib.request.urlopen(f"{endpoint.origin}/log") as answer:
        log = json.load(answer)
    assert sum(len(times) for _, times in log) == sum(r.output_tokens for r in run.records) == 2000
    true_ttft = statistics.median(times[0] - arrived for arrived, times in log)
    true_span = statistics.median(times[-1] - times[0] for _, times in log)
    assert 0 < statistics.median(r.ttft_s for r in run.ok) - true_ttft < 0.005
    assert statistics.median(sum(r.itl_s) for r in run.ok) == pytest.approx(true_span, abs=0.005)


async def test_conversation_carries_its_history(paced, tmp_path):
    """Each turn holds the turns before it and the server's answers."""
    work = load.Synthetic(input_tokens=10, output_tokens=5, turns=3, shared_prefix_tokens=7)
    run = await load.run(
        paced("--ttft", "0.01", "--itl", "0.001"),
        work,
        load.ClosedLoop(users=2),
        requests=6,
        path=tmp_path / "run.jsonl",
        **QUIET,
    )
    for talk in (0, 1):
        prompts = [r.prompt_tokens for r in run.records if r.index == talk]
        assert prompts == [7 + 10, 7 + 10 + 5 + 10, 7 + 10 + 2 * (5 + 10)]


@pytest.mark.parametrize("wanted", [False, True])
async def test_a_stopped_run_is_returned_only_if_that_was_asked_for(paced, tmp_path, wanted):
    """Its records are kept, those in flight as interrupted, and no process stays."""
    task = asyncio.create_task(
        load.run(
            paced("--ttft", "0.05", "--itl", "0.01"),
            load.Synthetic(input_tokens=8, output_tokens=20),
            load.ClosedLoop(users=3),
            duration_s=60,
            path=tmp_path / "run.jsonl",
            allow_partial=wanted,
            **QUIET,
        )
    )
    await asyncio.sleep(1.5)
    task.cancel()
    with contextlib.nullcontext() if wanted else pytest.raises(Stopped, match=r"run\.jsonl"):
        assert (await task).allow_partial
    run = Run.read(tmp_path / "run.jsonl")
    assert run.stopped and len(run.ok) >= 3 and not run.failed
    assert sum(record.cause == "interrupted" for record in run.records) == 3
    assert run.label == f"3 users (stopped after {len(run.ok)} requests)"
    left = [child.cmdline() for child in psutil.Process().children() if runs(child)]
    assert not any("helpers.load.generator" in line for line in left)


async def test_errors_are_records(tmp_path):
    """A server that refuses, breaks off or talks nonsense gives records with their cause."""
    answers = iter(
        [
            b"HTTP/1.1 429 Too Many\r\nretry-after: 0.1\r\ncontent-length: 4\r\n\r\nbusy",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\ndata: {",
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
            b'HTTP/1.1 200 OK\r\n\r\ndata: {"error":{"message":"out of memory"}}\n\n',
        ]
    )

    async def answer(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}")
        else:
            writer.write(next(answers))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    run = await load.run(
        Endpoint(base_url=f"http://127.0.0.1:{port}/v1", model="m"),
        SMALL,
        load.Gamma(rate_per_s=20, burstiness=1e6),
        requests=5,
        path=tmp_path / "run.jsonl",
        **QUIET,
    )
    server.close()
    causes = ["http 429", "malformed", "closed early", "malformed", "server error"]
    assert [record.cause for record in run.records] == causes
    assert run.records[0].retry_after_s == 0.1 and run.records[0].error == "busy"


async def test_a_server_that_dies_in_mid_run_ends_it_cleanly(paced, tmp_path):
    """What was running breaks off, what comes after is refused, and the run comes to its end."""
    endpoint = paced("--ttft", "0.3", "--itl", "0.1")
    task = asyncio.create_task(
        load.run(
            endpoint,
            load.Synthetic(input_tokens=8, output_tokens=50),
            load.ClosedLoop(users=4),
            requests=8,
            path=tmp_path / "run.jsonl",
            **QUIET,
        )
    )
    while b"[[" not in urllib.request.urlopen(f"{endpoint.origin}/log").read():
        await asyncio.sleep(0.05)  # until a request has arrived
    await asyncio.sleep(1)
    paced.kill()
    run = await asyncio.wait_for(task, 20)
    causes = [record.cause for record in run.records]
    assert set(causes[:4]) <= {"reset", "closed early"} and set(causes[4:]) == {"refused"}
    assert all(record.token_us for record in run.records[:4]) and not run.interrupted
    assert measure.summary(run).error_rate == 1


async def test_a_server_that_is_not_there_is_said_so(tmp_path):
    """No server: one sentence instead of a run full of refused requests."""
    with pytest.raises(CourseError, match=r"does not answer(.|\n)*helpers status"):
        await load.run(
            Endpoint(base_url="http://127.0.0.1:9/v1", model="m"),
            SMALL,
            load.ClosedLoop(users=1),
            requests=1,
            path=tmp_path / "run.jsonl",
            **QUIET,
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"requests": 0},
        {"duration_s": 0},
        {"duration_s": float("nan")},
        {"requests": 1, "timeout_s": -1},
        {"requests": 1, "where": load.Local(processes=0)},
    ],
)
async def test_nonsense_is_refused_before_anything_is_sent(wrong):
    """A run of no requests or no time is a slip of the pen, and an endless one a bill."""
    endpoint = Endpoint(base_url="http://127.0.0.1:9/v1", model="m")
    with pytest.raises(CourseError, match="must be above 0"):
        await load.run(endpoint, SMALL, load.ClosedLoop(users=1), **wrong)


async def test_a_run_needs_an_end(tmp_path):
    """Neither a number of requests nor a duration: refused before anything is sent."""
    endpoint = Endpoint(base_url="http://127.0.0.1:9/v1", model="m")
    with pytest.raises(CourseError, match="no end"):
        await load.run(endpoint, SMALL, load.ClosedLoop(users=1))


async def test_five_thousand_streams_at_once(paced, tmp_path):
    """One process carries 5,000 open streams at a token a second: none lost, little memory."""
    resource = pytest.importorskip("resource")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < 6000:
        pytest.skip("the system allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # the server's too
    task = asyncio.create_task(
        load.run(
            paced("--ttft", "6", "--itl", "1"),
            load.Synthetic(input_tokens=8, output_tokens=4),
            load.ClosedLoop(users=5000),
            requests=5000,
            path=tmp_path / "run.jsonl",
            **QUIET,
        )
    )
    peak = 0.0
    while not task.done():
        await asyncio.sleep(0.2)
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "helpers.load.generator" in child.cmdline():
                    peak = max(peak, child.memory_info().rss / 1e6)
    run = await task
    print(f"\n{run}, peak {peak:.0f} MB, most at once {most_at_once(run)}")
    assert len(run.ok) == 5000 and sum(record.output_tokens for record in run.ok) == 20_000
    assert most_at_once(run) == 5000 and 0 < peak < 1500


def test_disk_full_while_records_are_written(endpoint, tmp_path):
    """The run ends with a sentence; every record written until then can be read."""
    script = f"""
        import asyncio, resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        from helpers import load
        from helpers.endpoint import Endpoint
        endpoint = Endpoint(base_url={endpoint.base_url!r}, model={endpoint.model!r})
        work = load.Synthetic(input_tokens=8, output_tokens=8)
        asyncio.run(load.run(endpoint, work, load.ClosedLoop(users=4), requests=500,
                             path={str(tmp_path / "run.jsonl")!r}, progress=False))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "CourseError" in done.stderr
    assert "run.jsonl" in done.stderr.splitlines()[-1]
    run = Run.read(tmp_path / "run.jsonl")
    assert 10 < len(run.records) < 500
