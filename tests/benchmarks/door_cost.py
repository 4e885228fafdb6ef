"""What the door adds to TTFT and ITL: the same requests straight to a paced server, and through.

``python tests/benchmarks/door_cost.py [FILE]``, on a quiet machine; about three minutes. It prints
a table, and writes it to FILE (assets/door/cost.json) with the day and the machine.
"""

import asyncio
import json
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from helpers import load, serve
from helpers.endpoint import Endpoint

ROUNDS = 3  # of each, in turn: what else the machine does then meets both alike
ANSWER = 64  # tokens


def measure(endpoint: Endpoint, streams: int, door: serve.Door, folder: Path) -> dict:
    """Percentiles of one run in ms, its first quarter left out, and nginx's share of a core."""
    master = psutil.Process(int((door.folder / "nginx.pid").read_text()))
    worker, began = master.children()[0], time.perf_counter()
    used_s = sum(worker.cpu_times()[:2])
    work = load.Synthetic(input_tokens=16, output_tokens=ANSWER)
    arrivals = load.ClosedLoop(users=streams, spread_s=0.7)
    path = folder / f"{time.time_ns()}.jsonl"
    run = asyncio.run(
        load.run(endpoint, work, arrivals, requests=max(40, 8 * streams), path=path, progress=False)
    )
    assert not run.failed
    cores = (sum(worker.cpu_times()[:2]) - used_s) / (time.perf_counter() - began)
    counted = run.ok[len(run.ok) // 4 :]
    ttft = np.array([one.ttft_s for one in counted]) * 1e3
    itl = np.concatenate([np.diff(one.token_us) for one in counted]) / 1e3
    figures = {"ttft": ttft, "itl": itl}
    row = {f"{n}_p{q}_ms": np.percentile(x, q) for n, x in figures.items() for q in (50, 99)}
    return row | {"nginx_cpu": cores}


def main() -> None:
    """Measure, print and write."""
    program = Path(__file__).with_name("paced_server.py")
    command, pipe = [sys.executable, program, "--ttft", "0.1", "--itl", "0.01"], subprocess.PIPE
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdin=pipe, stdout=pipe) as server,
    ):
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        direct = Endpoint(base_url=url, model="mock")
        with serve.Door(folder=Path(folder, "door"), upstream=direct) as door:
            limits = serve.Limits(in_flight=1000, requests_a_minute=1e6)
            through = door.endpoint(door.customers.issue("ada", limits))
            for streams in (1, 64, 256):
                for _ in range(ROUNDS):
                    for way, endpoint in {"direct": direct, "door": through}.items():
                        row = measure(endpoint, streams, door, Path(folder))
                        rows.append({"streams": streams, "way": way, **row})
        server.stdin.close()
    table = pd.DataFrame(rows).groupby(["streams", "way"]).median().round(2)
    print(table.to_string())
    print((table.xs("door", level="way") - table.xs("direct", level="way")).to_string())
    if len(sys.argv) > 1:
        nginx = subprocess.run([serve.nginx.program()[0], "-v"], capture_output=True, text=True)
        about = {
            "when": f"{datetime.now(UTC):%Y-%m-%d}",
            "machine": f"{psutil.cpu_count()} cores, {platform.machine()}, "
            f"nginx {nginx.stderr.strip().rpartition('/')[2]}",
            "server": "TTFT 100 ms, ITL 10 ms (tests/benchmarks/paced_server.py)",
            "rounds": ROUNDS,
        }
        found = {"about": about, "rows": table.reset_index().to_dict("records")}
        Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
