"""Sweeps and searches: which loads they try, what they ask, and when they end."""

import asyncio

from support.listening import listen
from support.made_runs import broken, closed_loop

from helpers import load, measure
from helpers.load import levels

PROMISE = measure.Objective(ttft_ms=2000, tpot_ms=None)


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


async def test_a_search_that_is_stopped_returns_if_that_was_asked_for(tmp_path):
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
    quiet = {"progress": False, "folder": tmp_path, "allow_partial": True}
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


async def test_search_finds_the_knee_by_itself(tmp_path):
    """A server 20 ms slower for each concurrent request: its knee is bracketed to one user."""
    busy = 0

    async def answer(asked, writer):
        nonlocal busy
        busy += 1
        await asyncio.sleep(0.01 + 0.02 * busy * bool(asked))
        busy -= 1
        body = (
            b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}],'
            b'"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\ndata: [DONE]\n\n'
        )
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

    server, endpoint = await listen(answer)
    objective = measure.Objective(ttft_ms=100, tpot_ms=None)
    runs = await load.search(endpoint, load.Synthetic(), objective, folder=tmp_path, progress=False)
    server.close()
    found = measure.capacity(runs, objective)
    assert found.unit == "users" and 3 <= found.load <= 4 and found.fails_at == found.load + 1
    assert [run.users for run in runs] == sorted({1, 2, 4, 8} | {run.users for run in runs})
