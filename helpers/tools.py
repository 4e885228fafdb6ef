"""Function calling: a tool from a typed function, the loop, the wire, the evaluation.

The public face of ``helpers.tools_schema``, ``helpers.tools_loop``, ``helpers.tools_talk``,
``helpers.tools_wire``, ``helpers.tools_puppet``, ``helpers.tools_questions``,
``helpers.tools_evaluate`` and ``helpers.tools_load``.
"""

from helpers.tools_evaluate import Evaluation, compare, evaluate
from helpers.tools_load import crowd, phases
from helpers.tools_loop import Limits, run_tools
from helpers.tools_puppet import Puppet, calls, says
from helpers.tools_questions import Question, Verdict
from helpers.tools_questions import read as questions
from helpers.tools_schema import BadArguments, Tool, definitions, inside, tool
from helpers.tools_talk import Conversation, Step
from helpers.tools_wire import Wire, wire

__all__ = [
    "BadArguments", "Conversation", "Evaluation", "Limits", "Puppet", "Question", "Step", "Tool",
    "Verdict", "Wire", "calls", "compare", "crowd", "definitions", "evaluate", "inside", "phases",
    "questions", "run_tools", "says", "tool", "wire",
]  # fmt: skip
