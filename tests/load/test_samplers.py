"""What is read beside a run: the server's metrics."""

import asyncio
import threading

import pytest
from support.listening import listen

from helpers import load
from helpers.load.samplers import ServerSampler

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
    sampler = ServerSampler(endpoint, 0.05, notes)
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
        files.append(sampler.file.file)
        raise RuntimeError("the sampler is broken")

    monkeypatch.setattr(ServerSampler, "stop", stop)
    server, endpoint = await listen(answering(STREAM))
    one = load.ClosedLoop(users=1)
    path = tmp_path / "run.jsonl"
    run = await load.run(endpoint, load.Synthetic(), one, requests=2, path=path, progress=False)
    server.close()
    assert len(run.ok) == 2 and files[0].closed
