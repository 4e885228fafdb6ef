"""Sweeps and searches: which loads they try, what they ask, and when they end."""

import asyncio

import pytest
from support.listening import listen
from support.made_runs import broken, closed_loop
from support.virtual_gpu import VirtualGPU, VirtualTime

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
            run.ends, run.allow_partial = [run.ends[0] | {"ended": "interrupted"}], True
        return run

    monkeypatch.setattr(levels, "run", run)
    stop = {key: value for key, value in options.items() if key != "stop_at"}
    await load.search(None, load.Synthetic(), PROMISE, progress=False, requests=9, **stop)
    return asked


async def test_a_search_ends(monkeypatch):
    """Also when nothing is carried at all, and when it is stopped while it closes in."""
    asked = await searched(monkeypatch, 0, start=64, arrivals=lambda r: load.Poisson(rate_per_s=r))
    assert len(asked) == 7 and asked[-1][1].rate_per_s == 1
    asked = await searched(monkeypatch, 10, start=8, stop_at=12, precision=0.01)
    assert [arrivals.users for _, arrivals in asked] == [8, 16, 12]
    asked = await searched(monkeypatch, 99, limit=24, start=8)
    assert [arrivals.users for _, arrivals in asked] == [8, 16, 24]


async def test_users_are_whole(monkeypatch):
    """Customers with a pause are users, too, and there is no half of one."""
    pausing = {"arrivals": lambda n: load.ClosedLoop(users=n, think_time_s=1)}
    asked = await searched(monkeypatch, 5, precision=0.01, **pausing)
    assert [arrivals.users for _, arrivals in asked] == [1, 2, 4, 8, 6, 5]


async def test_a_search_by_rate_stops_at_its_limit(monkeypatch):
    """A limit that carries is tried once, also where it is no doubling."""
    rates = lambda rate: load.Poisson(rate_per_s=rate)  # noqa: E731
    asked = await searched(monkeypatch, 99, start=0.5, limit=1.7, arrivals=rates)
    assert [arrivals.rate_per_s for _, arrivals in asked] == [0.5, 1, 1.7]


async def test_a_search_asks_what_the_sweep_before_did_not(monkeypatch):
    """Else the server's prefix cache answers, and the capacity is one of repeated questions."""
    asked = await searched(monkeypatch, 8)
    searched_seeds = {work.seed for work, _ in asked}

    async def run(endpoint, work, arrivals, **_):
        asked.append((work, arrivals))
        return closed_loop(users=1)

    asked.clear()
    monkeypatch.setattr(levels, "run", run)
    await load.sweep(None, load.Synthetic(), users=(1, 2, 4, 8, 16), progress=False)
    assert len(searched_seeds | {work.seed for work, _ in asked}) == len(searched_seeds) + 5


async def test_a_search_finds_the_capacity_in_time(monkeypatch):
    """138 and 42 users: the question of the course, once answered with 48 of 138."""
    big = VirtualGPU(a=8, b=0.11, prefill=9000, cv=0.5)
    small = VirtualGPU(a=14, b=0.35, prefill=5000, seqs=96, kv=120_000, cv=0.5)
    for gpu, tpot_ms, carries in ((big, 50, 138), (small, 45, 42)):
        for seed in range(2):
            promise = measure.Objective(ttft_ms=1000, tpot_ms=tpot_ms)
            virtual = VirtualTime(gpu, seed).patch(monkeypatch, levels)
            runs = await load.search(None, load.Synthetic(), promise, progress=False)
            found = measure.capacity(runs, promise)
            print(f"\n{virtual.now - 1000:.0f} s: {found}")
            assert found.load == pytest.approx(carries, rel=0.1)
            assert virtual.now - 1000 < 350 and found.high < 1.4 * carries
            spread = [one.spread_s / gpu.answer_s(one.users) for one in virtual.asked[5:]]
            assert spread == pytest.approx([1] * len(spread), rel=0.25)


SMALL = VirtualGPU(a=12, b=0.4, prefill=6000, seqs=14, prompt=1155, out=211, cv=0.5)
MIDDLE = VirtualGPU(a=14, b=0.35, prefill=12_000, seqs=96, prompt=1155, out=211, cv=0.5)
LARGE = VirtualGPU(a=8, b=0.05, prefill=40_000, kv=800_000, prompt=1155, out=211, cv=0.5)


@pytest.mark.parametrize(
    ("gpu", "carries", "bends"),
    [(SMALL, 14, 10.6), (MIDDLE, 98, 56), (LARGE, 360, 374)],
    ids=["14 sequences", "96 sequences", "no end but its curve"],
)
async def test_sweep_and_search_share_six_minutes(monkeypatch, gpu, carries, bends):
    """Notebook 04 on a rented GPU: both answers, and what the sweep has decided is not repeated.

    The truth of the first two is the 90 % point of long runs at many loads, of the last that of
    its curve (the loads at which its room would end it are never reached).
    """
    promise = measure.Objective(ttft_ms=1000, tpot_ms=100)
    virtual = VirtualTime(gpu).patch(monkeypatch, levels)
    quiet = {"progress": False}
    swept = await load.sweep(None, load.Synthetic(), answer_times=1, budget_s=216, **quiet)
    assert [run.users for run in swept] == [2**n for n in range(len(swept))]
    assert measure.saturation(swept).users == pytest.approx(bends, rel=0.15)
    left_s = 1360 - virtual.now
    runs = await load.search(None, load.Synthetic(), promise, after=swept, budget_s=left_s, **quiet)
    print(f"\n{virtual.now - 1000:.0f} s: {measure.capacity(runs, promise)}")
    assert measure.capacity(runs, promise).load == pytest.approx(carries, rel=0.1)
    assert virtual.now - 1000 < 362
    kept = [run for run in swept if run in runs]
    again = {run.users for run in runs} - {run.users for run in kept}
    assert kept and again and not again & {run.users for run in kept}


async def test_a_sweep_ends_where_throughput_stops_rising(monkeypatch):
    """By the queue that the server shows, or after two doublings that brought nothing."""
    gpu = VirtualGPU(a=20, b=0.1, prefill=50_000, seqs=6)
    virtual = VirtualTime(gpu).patch(monkeypatch, levels)
    runs = await load.sweep(None, load.Synthetic(), answer_times=1, progress=False)
    assert [run.users for run in runs] == [1, 2, 4, 8] and measure.room(runs[-1]) == 6
    blind, seen = virtual.run, []

    async def run(*given, **options):
        seen.append(await blind(*given, **options))
        seen[-1].samples.clear()
        return seen[-1]

    monkeypatch.setattr(levels, "run", run)
    runs = await load.sweep(None, load.Synthetic(), answer_times=1, progress=False)
    assert [run.users for run in runs] == [1, 2, 4, 8, 16, 32]


async def test_a_search_keeps_to_its_budget(monkeypatch, capsys):
    """It says before it begins what it may cost, and ends in time with what it has."""
    gpu = VirtualGPU(a=8, b=0.11, prefill=9000)
    virtual = VirtualTime(gpu).patch(monkeypatch, levels)
    runs = await load.search(None, load.Synthetic(), PROMISE, budget_s=60, usd_per_hour=3)
    assert "at most 1 minutes, $0.05" in capsys.readouterr().out
    assert 3 <= len(runs) < 8 and virtual.now - 1000 <= 61
    virtual = VirtualTime(gpu).patch(monkeypatch, levels)
    chosen = {"users": (1, 2, 4, 8, 16), "budget_s": 60}
    runs = await load.sweep(None, load.Synthetic(), **chosen, progress=False)
    assert [run.users for run in runs] == [1, 2, 4, 8, 16] and virtual.now - 1000 <= 61


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


async def test_a_search_goes_on_from_its_records(tmp_path):
    """What was measured is not measured (and paid) again; what was cut short is, and is kept."""
    asked = 0

    async def answer(body, writer):
        nonlocal asked
        asked += bool(body)
        await asyncio.sleep(0.02 * bool(body))
        text = b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n'
        text += b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n'
        text += b"data: [DONE]\n\n"
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(text) + text)

    server, endpoint = await listen(answer)
    work = load.Prompts(items=("one", "two"))
    easy = measure.Objective(ttft_ms=60_000, tpot_ms=None)  # however busy the machine is
    again = {"limit": 4, "folder": tmp_path, "progress": False, "requests": 12}
    runs = await load.search(endpoint, work, easy, **again)
    assert [run.users for run in runs] == [1, 2, 4] and asked == 36
    cut = runs[1].path.read_text().splitlines()[:-3]
    runs[1].path.write_text("\n".join(cut))
    more = await load.search(endpoint, work, easy, **again)
    server.close()
    assert asked == 48 and [len(run.ok) for run in more] == [12, 12, 12]
    assert more[0] == runs[0] and len(list(tmp_path.iterdir())) == 4


async def test_search_finds_the_knee_by_itself(tmp_path):
    """A server 80 ms slower for each concurrent request: its knee is bracketed to one user."""
    busy = 0

    async def answer(asked, writer):
        nonlocal busy
        busy += 1
        await asyncio.sleep((0.04 + 0.08 * busy) * bool(asked))
        busy -= 1
        body = (
            b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}],'
            b'"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\ndata: [DONE]\n\n'
        )
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

    server, endpoint = await listen(answer)
    objective = measure.Objective(ttft_ms=400, tpot_ms=None)
    runs = await load.search(endpoint, load.Synthetic(), objective, folder=tmp_path, progress=False)
    server.close()
    found = measure.capacity(runs, objective)
    assert found.unit == "users" and 3 <= found.load <= 4 and found.high <= 6
    assert all(not run.failed and not run.interrupted for run in runs)
