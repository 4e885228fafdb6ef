"""Simulated customers: requests made, timed and recorded, one record each.

``run`` plays a workload (what is asked) by arrivals (when it is asked) against an ``Endpoint`` and
returns a ``Run``, whose records are also a file; ``sweep`` and ``search`` do so at several loads.
The requests are made in a process of its own; ``helpers.load.client`` is what takes the times.
"""

from helpers.load.arrivals import ClosedLoop, Constant, Gamma, Poisson
from helpers.load.levels import search, sweep
from helpers.load.metrics import server_metrics
from helpers.load.runs import run
from helpers.load.traces import AT, TRAFFIC, Replay, traffic
from helpers.load.workers import Local, OnExecutor, OverSSH
from helpers.load.workload import Lengths, Prompts, Synthetic, ToolCalls
from helpers.records import Record, Run

__all__ = [
    "AT", "TRAFFIC", "ClosedLoop", "Constant", "Gamma", "Lengths", "Local", "OnExecutor",
    "OverSSH", "Poisson", "Prompts", "Record", "Replay", "Run", "Synthetic", "ToolCalls", "run",
    "search", "server_metrics", "sweep", "traffic",
]  # fmt: skip
