"""A reader's week in minutes: mixed load on one rehearsal, and what its processes keep of it.

``python tests/benchmarks/soak.py --minutes 20`` (``ENGINE=vllm`` soaks the real vLLM)

One machine serves throughout, behind one tunnel. Again and again it is loaded, asked for chats,
completions and function calls; clients leave in mid-answer; its metrics are read; the tunnel is cut
and comes back; a second machine is rented and destroyed, sometimes while its engine still loads.
Between two rounds every process of ours is weighed: its proportional set size, the part of it that
is no file (a model and a library weigh less as soon as somebody else maps them, too), descriptors,
threads. What is higher at the end than after the warm-up is a leak. Needs Linux.
"""

import argparse
import asyncio
import itertools
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import httpx  # noqa: F401  loaded before openai's left streams are collected, not in the middle
import pandas as pd
import psutil

from helpers import load, rehearsal, rent, tools
from helpers import settings as settings_module
from helpers.choose import models
from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.rehearsal.engine import PROMPT_CACHE_MIB
from helpers.rent import guard, ssh
from helpers.serve import spec as serving
from helpers.serve.spec import ServingSpec

CONTEXT, SLOTS = 512, 4
# Between the first and the last third of the readings; a leak a round is many times that.
LIMITS = {"descriptors": 2, "threads": 2, "anon_mb": 8}
SILENT = {"progress": lambda line: None}


@tools.tool
def track_parcel(number: str) -> str:
    """Find out where a parcel is.

    Args:
        number: Parcel number
    """
    return f"parcel {number} is in Lyon"


async def soak(settings, seconds: float, say=lambda line: None) -> pd.DataFrame:
    """Load a rehearsal and weigh its processes after each round.

    Args:
        settings: of a rehearsal that nobody else uses.
        seconds: how long, after the warm-up; at least three rounds.
        say: called with one line a round.

    Returns:
        One row a process and reading: ``round, t_s, process, anon_mb, pss_mb, descriptors,
        threads``.
    """
    provider = rent.connect(settings)
    spec = models.spec(serving.MISTRAL_AWQ, settings)
    spec = ServingSpec(
        model=spec.model,
        max_model_len=CONTEXT,
        extra_args=(*spec.extra_args, "--max-num-seqs", str(SLOTS)),
    )
    readings = []
    before = psutil.Process().children()  # of a whole test run, say: none of this soak's doing
    with (
        tempfile.TemporaryDirectory() as folder,
        guard.rented(provider, spec, "soak", settings, **SILENT) as machine,
        ssh.tunnel(machine, settings) as tunnel,
    ):
        endpoint = tunnel.endpoint(log=lambda: provider.logs(machine.id, 20))
        # Every page of the KV cache is touched once, and every module imported.
        long = load.Synthetic(input_tokens=CONTEXT - 150, output_tokens=80)
        await _load(endpoint, Path(folder), long, users=SLOTS, requests=2 * SLOTS)
        for number in range(2):
            await _round(number, provider, settings, endpoint, tunnel, Path(folder))
        began, number = time.monotonic(), 2
        while time.monotonic() - began < seconds or number < 5:
            await _round(number, provider, settings, endpoint, tunnel, Path(folder))
            now = {"round": number, "t_s": time.monotonic() - began}
            rows = [now | row for row in weigh(settings, machine.id, before)]
            readings += rows
            weights = ", ".join(f"{row['process']} {row['anon_mb']:.0f}" for row in rows)
            say(f"{now['t_s']:5.0f} s, round {number}, MB: {weights}")
            number += 1
    return pd.DataFrame(readings)


async def _round(number: int, provider, settings, endpoint: Endpoint, tunnel, folder: Path) -> None:
    """Two users for some seconds, and everything else that a reader does once."""
    work = load.Synthetic(input_tokens=48, output_tokens=24, turns=2, seed=number)
    run = await _load(endpoint, folder, work, users=2, requests=8)
    assert len(run.ok) == 8, run.records
    cut = load.Synthetic(input_tokens=48, output_tokens=300, seed=number)
    run = await _load(endpoint, folder, cut, users=2, requests=2, timeout_s=0.5)
    assert [record.cause for record in run.records] == ["timeout"] * 2
    with endpoint.client() as client:
        client.completions.create(model=endpoint.model, prompt="One, two,", max_tokens=8)
        for answer in [_stream(client, endpoint.model, number) for _ in range(3)]:
            next(iter(answer))  # a customer who sees the first word and leaves
            answer.close()
    talk = await tools.run_tools(endpoint, f"Where is parcel {48213 + number}?", [track_parcel])
    assert talk.calls
    for _ in range(5):
        assert load.server_metrics(endpoint) is not None
    with guard.rented(provider, ServingSpec(), "soak-2", settings, **SILENT) as second:
        if number % 2:
            with ssh.tunnel(second, settings) as other:
                other.endpoint(poll_s=0.2)
    if number % 2:
        before = len(tunnel.events)
        rehearsal.provoke(settings, "tunnel_drop")
        await _until(lambda: len(tunnel.events) >= before + 2 and tunnel.up)
    await _until(lambda: (now := load.server_metrics(endpoint)) and not now["running"])
    server = psutil.Process(rehearsal.running(settings).pid)
    await _until(lambda: len(alive(server.children())) == 1)  # the other machine is dead and buried


async def _load(endpoint: Endpoint, folder: Path, work, *, users: int, **options):
    users = load.ClosedLoop(users=users)
    path = folder / "run.jsonl"
    path.unlink(missing_ok=True)
    return await load.run(endpoint, work, users, path=path, progress=False, **options)


def _stream(client, model: str, number: int):
    text = f"Tell me a story of {number} animals."
    return client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}], max_tokens=400, stream=True
    )


async def _until(true, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            raise CourseError(f"the rehearsal did not calm down in {timeout_s:.0f} s")
        await asyncio.sleep(0.2)


def weigh(settings, machine_id: str, before: list[psutil.Process] = ()) -> list[dict]:
    """Weigh this process, what it has started since ``before``, and the rehearsal, a row each.

    ``engine`` is all that the machine has started; ``others`` is what should not be there:
    generators, tunnels and machines that have outlived their use.
    """
    server, parent = psutil.Process(rehearsal.running(settings).pid), psutil.Process()
    machines, children = alive(server.children()), alive(parent.children())
    (daemon,) = [one for one in machines if one.cmdline()[-1].endswith(f"/{machine_id}")]
    group = alive(p for p in psutil.process_iter() if p != daemon and _group(p) == daemon.pid)
    tunnels = [p for p in children if "rent/tunnel.py" in " ".join(p.cmdline()) and p not in before]
    ours = {
        "parent": [parent],
        "tunnel": tunnels[:1],
        "server": [server],
        "machine": [daemon],
        "engine": group,
    }
    known = {server, daemon, *tunnels[:1], *before}
    ours["others"] = [p for p in (*children, *machines) if p not in known]
    return [{"process": name, **_weight(processes)} for name, processes in ours.items()]


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended: a zombie has, and only its parent has not asked yet how."""
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def _weight(processes: list[psutil.Process]) -> dict:
    memory = [_memory_mb(process.pid) for process in processes]
    return {
        "anon_mb": sum(one["Pss_Anon"] + one["Pss_Shmem"] for one in memory),
        "pss_mb": sum(one["Pss"] for one in memory),
        "descriptors": sum(p.num_fds() for p in processes),
        "threads": sum(p.num_threads() for p in processes),
    }


def _memory_mb(pid: int) -> dict[str, float]:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return {name: int(kb) * 1024 / 1e6 for name, kb in re.findall(r"(\w+): +(\d+) kB", text)}


def _group(process: psutil.Process) -> int:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return 0


def growth(readings: pd.DataFrame) -> pd.DataFrame:
    """Compare the first with the last third of the readings, by their lowest.

    A leak raises the floor; what swings above it is connections that are just being closed. An
    engine may fill the cache of prompts that it was given.

    Returns:
        A row a process and measure: ``first, last, growth, leak``.
    """
    rounds = sorted(readings["round"].unique())
    third = max(1, len(rounds) // 3)
    measures = [
        name for name in ("anon_mb", "pss_mb", "descriptors", "threads") if name in readings
    ]
    rows = []
    for (name, group), measure in itertools.product(readings.groupby("process"), measures):
        first = group[group["round"].isin(rounds[:third])][measure].min()
        last = group[group["round"].isin(rounds[-third:])][measure].min()
        grown = last - first
        limit = LIMITS.get(measure, float("inf"))
        if (name, measure) == ("engine", "anon_mb"):
            limit += PROMPT_CACHE_MIB * 1.05
        leak = grown > limit
        rows.append([name, measure, first, last, grown, leak])
    columns = ["process", "measure", "first", "last", "growth", "leak"]
    return pd.DataFrame(rows, columns=columns).set_index(["process", "measure"])


def main() -> int:
    """Soak and print; status 1 when something grows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--csv", type=Path, help="where to write every reading")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["REHEARSAL_HOME"] = home
        settings = settings_module.read()
        try:
            began = time.monotonic()
            readings = asyncio.run(soak(settings, options.minutes * 60, print))
        finally:
            rehearsal.stop(settings)
    if options.csv:
        readings.round(3).to_csv(options.csv, index=False)
    table = growth(readings)
    rounds = readings["round"].nunique()
    print(f"\n{settings.engine}: {rounds} rounds, {time.monotonic() - began:.0f} s in all")
    print(table.round(1).to_string())
    return int(table["leak"].any())


if __name__ == "__main__":
    sys.exit(main())
