"""Figures of the course."""

from helpers.plots.load import (
    capacity,
    compare,
    latency,
    loops,
    request,
    server_view,
    throughput,
    timeline,
    ways,
)

__all__ = [
    "capacity",
    "compare",
    "latency",
    "loops",
    "request",
    "server_view",
    "throughput",
    "timeline",
    "ways",
]
