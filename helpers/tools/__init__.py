"""Function calling: a tool from a typed function, the loop, the wire, the evaluation.

The public face of ``helpers.tools.schema``, ``helpers.tools.loop``, ``helpers.tools.conversation``,
``helpers.tools.rendered``, ``helpers.tools.puppet``, ``helpers.tools.questions``,
``helpers.tools.evaluate`` and ``helpers.tools.crowd``.
"""

from helpers.tools.conversation import Conversation, Step
from helpers.tools.crowd import crowd, phases
from helpers.tools.evaluate import Evaluation, compare, evaluate
from helpers.tools.loop import Limits, run_tools
from helpers.tools.puppet import Puppet, calls, says
from helpers.tools.questions import Question, Verdict
from helpers.tools.questions import read as questions
from helpers.tools.rendered import Wire, wire
from helpers.tools.schema import BadArguments, Tool, definitions, inside, tool

__all__ = [
    "BadArguments", "Conversation", "Evaluation", "Limits", "Puppet", "Question", "Step", "Tool",
    "Verdict", "Wire", "calls", "compare", "crowd", "definitions", "evaluate", "inside", "phases",
    "questions", "run_tools", "says", "tool", "wire",
]  # fmt: skip
