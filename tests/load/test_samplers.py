"""What is read beside a run: the server's metrics."""

import asyncio
import os
import threading
from types import SimpleNamespace

import psutil
import pytest
from support.listening import listen

from helpers import load
from helpers.load.samplers import OtherPrograms, ServerSampler

STREAM = (
    b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\ndata: [DONE]\n\n'
)


class Notes:
    """Keeps what a sampler adds, as a run's file would."""

    def __init__(self):
        self.entries, self.enough = [], threading.Event()

    def add(self, kind, entry):
        self.entries.append({"type": kind, **entry})
        if len(self.entries) >= 3:
            self.enough.set()


def answering(body: bytes):
    """A server's answer of this body to every request."""

    async def answer(asked, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

    return answer


@pytest.mark.parametrize(("text", "fewest"), [(b"vllm:num_requests_running 2\n", 4), (b"{", 0)])
async def test_a_server_is_read_before_during_and_after(text, fewest):
    """One that has no metrics is asked once and then left alone."""
    server, endpoint = await listen(answering(text))
    notes = Notes()
    sampler = ServerSampler(endpoint, 0.05, notes.add)
    await asyncio.to_thread(sampler.start)
    await asyncio.to_thread(notes.enough.wait, 5 if fewest else 0.2)
    await asyncio.to_thread(sampler.stop)
    server.close()
    times = [entry["t_s"] for entry in notes.entries]
    assert len(times) >= fewest and times == sorted(times) and not (times and times[0] > 0.5)
    assert all(entry["running"] == 2 for entry in notes.entries) and bool(times) == bool(fewest)


async def test_a_sampler_that_breaks_does_not_cost_the_run(tmp_path, monkeypatch):
    """What was measured is returned, and its file is closed."""
    files = []

    def stop(sampler):
        files.append(sampler.add.__self__.file)  # the run's
        raise RuntimeError("the sampler is broken")

    monkeypatch.setattr(ServerSampler, "stop", stop)
    server, endpoint = await listen(answering(STREAM))
    one = load.ClosedLoop(users=1)
    path = tmp_path / "run.jsonl"
    run = await load.run(endpoint, load.Synthetic(), one, requests=2, path=path, progress=False)
    server.close()
    assert len(run.ok) == 2 and files[0].closed


def test_only_what_the_course_does_not_compute_counts_as_others(monkeypatch):
    """Whoever has a video open learns why; this process, the rehearsal and vLLM are no others."""
    processes, whole = [], [0.0]

    def add(pid, words, seconds):
        times = (seconds, 0.0, 0.0, 0.0)
        processes.append(SimpleNamespace(pid=pid, info={"cmdline": words, "cpu_times": times}))
        whole[0] += seconds

    monkeypatch.setattr(psutil, "process_iter", lambda names: iter(processes))
    monkeypatch.setattr(psutil, "cpu_times", lambda: SimpleNamespace(user=whole[0], system=0.0))
    others = OtherPrograms()
    add(os.getpid(), ["python"], 50.0)
    add(1, ["python", "-m", "helpers.rehearsal.engine", "serve"], 50.0)
    add(2, ["VLLM::EngineCore"], 50.0)
    assert others.cores() == 0
    add(3, ["python", "-c", "while True: pass"], 1e4)
    add(4, None, 1e4)  # somebody else's: its command line is not for us
    assert others.cores() > 1e3


def test_a_computer_that_does_not_tell_costs_no_run(monkeypatch):
    """Some containers hide their processes from each other."""

    def hidden():
        raise PermissionError

    monkeypatch.setattr(psutil, "cpu_times", hidden)
    assert OtherPrograms().cores() == 0
