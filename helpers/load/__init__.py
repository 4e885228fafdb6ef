"""Simulated customers: requests made, timed and recorded, one record each."""

from helpers.load.arrivals import ClosedLoop, Gamma, Interval, Poisson, Ramp, Replay
from helpers.load.runs import run, search, sweep
from helpers.load.workload import Lengths, Prompts, Synthetic, ToolCalls
from helpers.records import Record, Run

__all__ = [
    "ClosedLoop", "Gamma", "Interval", "Lengths", "Poisson", "Prompts", "Ramp", "Record", "Replay",
    "Run", "Synthetic", "ToolCalls", "run", "search", "sweep",
]  # fmt: skip
