"""Function calling: a tool from a typed function, the loop, what goes over the wire.

The public face of ``helpers.tools_schema``, ``helpers.tools_loop``, ``helpers.tools_talk`` and
``helpers.tools_wire``.
"""

from helpers.tools_loop import Limits, run_tools
from helpers.tools_schema import BadArguments, Tool, definitions, inside, tool
from helpers.tools_talk import Conversation, Step
from helpers.tools_wire import Wire, wire

__all__ = [
    "BadArguments", "Conversation", "Limits", "Step", "Tool", "Wire", "definitions", "inside",
    "run_tools", "tool", "wire",
]  # fmt: skip
