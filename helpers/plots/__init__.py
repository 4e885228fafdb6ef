"""Every figure of the course, in one style: units on the axes, the finding in the title.

Each function returns a ``Picture``: as a cell's last line it shows itself, with its title as
alternative text, and ``figure.savefig(path)`` keeps it. Colours and style are in ``style``; of the
other modules each draws for one stage: ``choose`` (00, 06, 09), ``load`` (04), ``tools`` (05),
``scale`` (08).
"""

from helpers.plots.choose import break_even, roofline, vram
from helpers.plots.load import capacity, latency, request, server_view, throughput, timeline
from helpers.plots.scale import day, events, policies, replicas
from helpers.plots.style import picture
from helpers.plots.tools import conversation, mistakes, phases

__all__ = [
    "break_even", "capacity", "conversation", "day", "events", "latency", "mistakes", "phases",
    "picture", "policies", "replicas", "request", "roofline", "server_view", "throughput",
    "timeline", "vram",
]  # fmt: skip
