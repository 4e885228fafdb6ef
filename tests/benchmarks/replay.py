"""How late a trace is asked: the lag of each request of one like Azure's code trace.

``python tests/benchmarks/replay.py 30 [FILE]``, on a quiet machine of two or more cores, plays
8,819 requests of 3,436 s thirty times as fast against ``paced_server.py``: first without bursts,
then as ``load.traffic("code")`` draws them, in four minutes. It prints a row for each, and writes
them into the file, such as ``assets/replay.json``. ``--trace FILE`` plays a published one instead.

A burst's requests are sent one after the other, about 40 us each: the last of a hundred in one
millisecond is 4 ms late on any machine.
"""

import argparse
import asyncio
import json
import platform
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support import paced

from helpers import load

REQUESTS, SPAN_S = 8819, 3436  # of Azure's code trace of 2023


def play(trace: load.Replay) -> dict:
    """Play it, and say how late it was."""
    with (
        tempfile.TemporaryDirectory() as folder,
        paced.serve("--ttft", "0", "--itl", "0") as endpoint,
    ):
        run = asyncio.run(
            load.run(
                endpoint, trace.workload(), trace,
                path=Path(folder, "run.jsonl"), progress=False, server_every_s=None,
            )
        )  # fmt: skip
    assert not run.failed
    lags = np.array([1e3 * record.lag_s for record in run.records])
    due_ms = np.array([int(1e3 * record.scheduled_s) for record in run.records])
    return {
        "requests": len(lags),
        "a second": round(len(lags) / trace.times_s[-1], 1),
        "most in 1 ms": int(np.unique(due_ms, return_counts=True)[1].max()),
        "lag p50, ms": round(np.percentile(lags, 50), 2),
        "lag p99, ms": round(np.percentile(lags, 99), 2),
    }


def main() -> None:
    """Play them, and print and write how late they were."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("speed", type=float)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--trace", help="a file that load.Replay.read takes")
    options = parser.parse_args()
    if options.trace:
        traces = {options.trace: load.Replay.read(options.trace, speed=options.speed)}
    else:
        span_s = SPAN_S / options.speed
        drawn = {"rate_per_s": REQUESTS / span_s, "span_s": span_s}
        traces = {
            "Poisson": load.traffic("code", **drawn, burstiness=1),
            "bursts": load.traffic("code", **drawn),
        }
    where = {"date": f"{datetime.now(UTC):%Y-%m-%d}"}
    where |= {"machine": f"{psutil.cpu_count()} cores, {platform.machine()}"}
    rows = []
    for name, trace in traces.items():
        rows.append({"arrivals": name, **play(trace), **where})
        print(json.dumps(rows[-1]))
    if options.file:
        options.file.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
