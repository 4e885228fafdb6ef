"""Capacity, search and pictures on runs that are not as one would wish."""

import asyncio
import random
from dataclasses import replace

import numpy as np
import pytest
from support.listening import listen
from support.made_runs import closed_loop

from helpers import load, measure, plots
from helpers.errors import CourseError
from helpers.load import levels
from helpers.records import Record, Run

PROMISE = measure.Objective(ttft_ms=2000, tpot_ms=None)


def queue(rate, seconds=20.0, service_s=0.025, seed=0) -> Run:
    """Poisson arrivals at a server that answers one request at a time, in ``service_s`` each."""
    chance, now, free, records = random.Random(seed), 0.0, 0.0, []
    while (now := now + chance.expovariate(rate)) < seconds:
        free = max(free, now) + service_s
        first = round((free - now) * 1e6)
        records.append(Record(index=len(records), scheduled_s=now, sent_s=now, end_s=free,
                              token_us=(first,), output_tokens=1, status=200))  # fmt: skip
    even = closed_loop()
    arrivals = {"kind": "Poisson", "rate_per_s": rate}
    return Run(even.header | {"label": f"{rate}/s", "arrivals": arrivals}, records, ends=even.ends)


def broken(run: Run) -> Run:
    """The same run, with every answer lost."""
    lost = [replace(record, cause="http 503", token_us=()) for record in run.records]
    return Run(run.header, lost, ends=run.ends)


def test_a_server_that_falls_behind_has_no_capacity():
    """After 20 s at 60/s a server for 40/s still keeps a promise of several seconds."""
    loose = measure.Objective(ttft_ms=60_000, tpot_ms=None)
    runs = [queue(rate) for rate in (20, 30, 36, 60, 80)]
    found = measure.capacity(runs, loose)
    assert (found.load, found.fails_at) == (36, 60)
    assert not any(measure.meets(queue(60, seed=seed), loose) for seed in range(20))
    kept = [measure.meets(queue(4, seed=seed, service_s=0.2), loose) for seed in range(50)]
    assert sum(kept) >= 48  # chance alone must not look like a queue


def test_an_answer_without_a_token_misses_the_promise():
    """It came whole, but its first token never did."""
    run = closed_loop()
    silent = [replace(record, token_us=(), output_tokens=0) for record in run.records]
    assert measure.meets(run, PROMISE)
    assert not measure.meets(Run(run.header, silent, ends=run.ends), PROMISE)


def test_repeats_and_stopped_runs():
    """One miss of three is a miss; a run that somebody stopped is no measurement."""
    good, bad = closed_loop(users=8), broken(closed_loop(users=8))
    found = measure.capacity([closed_loop(users=4), good, bad, good], PROMISE)
    assert (found.load, found.fails_at) == (4, 8)
    stopped = closed_loop(users=16)
    stopped.ends = [stopped.ends[0] | {"ended": "interrupted"}]
    found = measure.capacity([good, stopped], PROMISE)
    assert (found.load, found.fails_at) == (8, None)
    gone = broken(closed_loop(users=16))
    gone.ends = [gone.ends[0] | {"ended": "server gone"}]
    assert measure.capacity([good, gone], PROMISE).fails_at == 16


def test_two_requests_prove_nothing():
    """A bootstrap of one value has no width, which is not certainty."""
    one, other = closed_loop(users=1, each=1), closed_loop(users=1, each=1, ttft_s=0.2)
    difference = measure.compare(one, other, "ttft_p50_ms")
    assert not difference.real and "too few" in str(difference)


async def searched(monkeypatch, carries, **options):
    """The loads that a search tries at a server that carries ``carries``, and how it asks."""
    asked = []

    async def run(endpoint, work, arrivals, **_):
        asked.append((work, arrivals))
        amount = getattr(arrivals, "users", None) or arrivals.rate_per_s
        run = closed_loop(users=1) if amount <= carries else broken(closed_loop(users=1))
        if amount == options.get("stop_at"):
            run.ends = [run.ends[0] | {"ended": "interrupted"}]
        return run

    monkeypatch.setattr(levels, "run", run)
    stop = {key: value for key, value in options.items() if key != "stop_at"}
    await load.search(None, load.Synthetic(), PROMISE, **stop)
    return asked


async def test_a_search_ends(monkeypatch):
    """Also when nothing is carried at all, and when it is stopped while it bisects."""
    asked = await searched(monkeypatch, 0, start=64, arrivals=lambda r: load.Poisson(rate_per_s=r))
    assert len(asked) == 7 and asked[-1][1].rate_per_s == 1
    asked = await searched(monkeypatch, 10, start=8, stop_at=12, precision=0.01)
    assert [arrivals.users for _, arrivals in asked] == [8, 16, 12]


async def test_users_are_whole(monkeypatch):
    """Customers with a pause are users, too, and there is no half of one."""
    pausing = {"arrivals": lambda n: load.ClosedLoop(users=n, think_time_s=1)}
    asked = await searched(monkeypatch, 5, precision=0.01, **pausing)
    assert [arrivals.users for _, arrivals in asked] == [1, 2, 4, 8, 6, 5]


async def test_a_search_asks_what_the_sweep_before_did_not(monkeypatch):
    """Else the server's prefix cache answers, and the capacity is one of repeated questions."""
    asked = await searched(monkeypatch, 8)
    searched_seeds = {work.seed for work, _ in asked}

    async def run(endpoint, work, arrivals, **_):
        asked.append((work, arrivals))
        return closed_loop(users=1)

    asked.clear()
    monkeypatch.setattr(levels, "run", run)
    await load.sweep(None, load.Synthetic())
    assert len(searched_seeds | {work.seed for work, _ in asked}) == len(searched_seeds) + 5


async def test_a_search_that_is_cancelled_returns(tmp_path):
    """What was measured comes back, and nothing further is asked."""
    count = 0

    async def answer(body, writer):
        nonlocal count
        count += bool(body)
        await asyncio.sleep(0.05)
        text = b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n'
        text += b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n'
        text += b"data: [DONE]\n\n"
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(text) + text)

    server, endpoint = await listen(answer)
    quiet = {"progress": False, "folder": tmp_path}
    task = asyncio.create_task(
        load.search(
            endpoint,
            load.Synthetic(),
            PROMISE,
            limit=2,
            start=2,
            duration_s=60,
            **quiet,
        )
    )
    while count < 6:
        await asyncio.sleep(0.05)
    task.cancel()
    runs = await task
    server.close()
    assert len(runs) == 1 and runs[0].stopped and runs[0].ok


def test_pictures_of_failure(tmp_path):
    """A load at which every answer was lost still has its place in the picture."""
    runs = [closed_loop(users=1), broken(closed_loop(users=2))]
    for number, objective in enumerate(
        (PROMISE, measure.Objective(), measure.Objective(e2e_ms=900, percentile=99.5))
    ):
        plots.capacity(runs, objective).savefig(tmp_path / f"{number}.png")
    assert "endless" in plots.latency(runs).get_suptitle()
    with pytest.raises(CourseError, match="no request"):
        plots.request(runs[1])
    tools = closed_loop()
    called = [replace(record, finish="tool_calls") for record in tools.records]
    plots.capacity([Run(tools.header, called, ends=tools.ends)], measure.Objective())


def test_pictures_of_rates(tmp_path):
    """A search by rate gives the same pictures, with the rate on the axis."""
    runs = [queue(rate, seconds=5) for rate in (10, 20, 30)]
    for figure in (plots.throughput(runs), plots.latency(runs), plots.compare(runs, runs)):
        figure.savefig(tmp_path / "rates.png")
        assert figure.axes[0].get_xlabel() == "requests/s"
    assert "at 10 requests/s" in plots.throughput(runs).get_suptitle()


def test_exports_of_odd_runs():
    """A fixed interval is a rate; an answer that ended at once has no times."""
    run = queue(8, seconds=5)
    run.header["arrivals"] = {"kind": "Interval", "every_s": 0.125}
    run.header["started_at"] = "2026-11-24T12:00:00+00:00"
    run.header["endpoint"]["model"] = "m"
    assert measure.to_vllm(run)["request_rate"] == 8
    run.records[0] = replace(run.records[0], token_us=(), output_tokens=0)
    run.samples = [{"t_s": t, "output_tokens_total": 100.0 * t, "ttft_count": 10.0 * t,
                    "ttft_s_sum": 1.0 * t, "itl_s_sum": 1.0 * t, "itl_count": 9.0 * t}
                   for t in (0.0, 5.0)]  # fmt: skip
    assert np.isfinite(measure.agreement(run)["client"]).all()
