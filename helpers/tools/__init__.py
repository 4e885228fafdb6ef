"""Function calling: a tool from a typed function, the loop that runs it, and how well it goes.

``tool`` makes a tool, ``run_tools`` lets a model use it and returns a ``Conversation``. ``wire``
shows what passes between them, ``Puppet`` is a model that says what you tell it to, ``evaluate``
counts how often a model's calls are right, and ``crowd`` lets many users ask at once.
"""

from helpers.tools.conversation import Conversation, Step
from helpers.tools.crowd import crowd, phases
from helpers.tools.evaluate import Evaluation, difference, evaluate
from helpers.tools.loop import Limits, run_tools
from helpers.tools.puppet import Puppet, calls, says
from helpers.tools.questions import Question
from helpers.tools.questions import read as questions
from helpers.tools.rendered import Wire, wire
from helpers.tools.schema import BadArguments, Tool, definitions, inside, tool

__all__ = [
    "BadArguments", "Conversation", "Evaluation", "Limits", "Puppet", "Question", "Step", "Tool",
    "Wire", "calls", "crowd", "definitions", "difference", "evaluate", "inside",
    "phases", "questions", "run_tools", "says", "tool", "wire",
]  # fmt: skip
