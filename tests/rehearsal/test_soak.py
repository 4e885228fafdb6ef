"""The short form of ``benchmarks/soak.py``: three rounds of mixed load, and nothing that grows."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import soak


def test_a_leak_is_seen():
    """The long run's verdict is worth as much as its smallest find: one descriptor a round."""
    flat = {"anon_mb": 90.0, "descriptors": 20, "threads": 4}
    rows = [{"round": n, "process": "server", **flat} for n in range(9)]
    assert not soak.growth(pd.DataFrame(rows))["leak"].any()
    for n, row in enumerate(rows):
        row["descriptors"] += n
    table = soak.growth(pd.DataFrame(rows))
    assert table["leak"].to_dict() == {
        ("server", "descriptors"): True,
        ("server", "threads"): False,
        ("server", "anon_mb"): False,
    }


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
async def test_nothing_grows(own_rehearsal):
    """Who leaves a rehearsal running for a day must not find the laptop full in the evening."""
    bystander = subprocess.Popen(["sleep", "300"])  # somebody else's, as in a whole test run
    ended = []

    def say(line: str) -> None:  # between two readings something of ours ends that nobody asks
        print(line)
        ended.append(subprocess.Popen(["true"]))

    try:
        readings = await soak.soak(own_rehearsal, seconds=0, say=say)
    finally:
        bystander.kill()
        for process in (bystander, *ended):
            process.wait()
    table = soak.growth(readings)
    print(table.round(1).to_string())
    assert readings["round"].nunique() == 3
    assert not table["leak"].any(), table[table["leak"]]
    assert readings.query("process == 'others'")["threads"].sum() == 0
