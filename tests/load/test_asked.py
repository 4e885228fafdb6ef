"""What a request's record says of waiting, wherever the wait was."""

import asyncio
import json
import time

import pytest
from support.answers import DONE, ROLE, STOP, WORD, chunked, count, whole
from support.listening import listen

from helpers import load
from helpers.load.asked import Asked
from helpers.records import Record, Run

QUIET = {"progress": False, "server_every_s": None}
END = b"0\r\n\r\n"
MODELS = whole(b'{"data": [{"id": "m", "owned_by": "vllm"}]}')


async def test_waiting_for_a_place_is_latency(tmp_path):
    """A server, or a door before it, that takes one at a time: the others wait, and it counts."""
    place = asyncio.Semaphore(1)

    async def answer(body, writer):
        if not body:
            return writer.write(MODELS)
        async with place:
            await asyncio.sleep(0.1)
            writer.write(chunked([ROLE, WORD, STOP, count(1), DONE]))

    server, endpoint = await listen(answer)
    work = load.Synthetic(input_tokens=8, output_tokens=1)
    arrivals = load.Replay(times_s=(0, 0, 0, 0))
    run = await load.run(endpoint, work, arrivals, path=tmp_path / "run.jsonl", **QUIET)
    server.close()
    waits = sorted(record.ttft_s for record in run.ok)
    assert len(waits) == 4
    assert all(wait > 0.095 * place for place, wait in enumerate(waits, 1)), waits


def test_a_client_that_sends_late_does_not_hide_it():
    """What was scheduled and sent late has waited since its time: it is in the percentiles."""
    asked = Asked(7, -1, 0, scheduled_s=1.0)
    asked.status, asked.sent, asked.connect_s, asked.end = 200, 103.5, 0.5, 105.0
    asked.pieces = [WORD, STOP, DONE]
    asked.times = [104.0, 105.0, 105.0]
    entry = json.loads(asked.line(100.0, "none"))
    entry.pop("type")
    record = Record(**entry)
    assert (record.ttft_s, record.e2e_s, record.lag_s) == (3.0, 4.0, 2.0)
    assert Run({}, [record]).lag_p99_ms == 2000 and Run({}, [record]).client_limited


async def test_a_prompt_of_fifty_thousand_tokens_slows_no_stream(tmp_path):
    """It arrives whole, and the answer's tokens are read as they come, not as a buffer fills."""
    words, spans = [], []

    async def answer(body, writer):
        if not body:
            return writer.write(MODELS)
        words.append(len(json.loads(body)["messages"][0]["content"].split()))
        times = []
        head, gap, word = chunked([WORD]).removesuffix(END).partition(b"\r\n\r\n")
        writer.write(head + gap)
        for _ in range(40):
            writer.write(word)
            times.append(time.perf_counter())
            await asyncio.sleep(0.005)
        writer.write(chunked([STOP, count(40), DONE]).removeprefix(head + gap))
        spans.append(times[-1] - times[0])

    server, endpoint = await listen(answer)
    run = await load.run(
        endpoint,
        load.Synthetic(input_tokens=50_000, output_tokens=40),
        load.ClosedLoop(users=1),
        requests=2,
        path=tmp_path / "run.jsonl",
        **QUIET,
    )
    server.close()
    assert words == [50_000] * 2 and not run.held_back
    for record, span_s in zip(run.ok, spans, strict=True):
        assert record.tpot_s == pytest.approx(span_s / 39, abs=0.003)
