"""Pictures of function calling: a conversation on a time axis, and what tools in a prompt cost."""

import pandas as pd
from matplotlib import rc_context

from helpers.picture import Picture
from helpers.plots import BLUE, GREEN, GREY, ORANGE, STYLE, blank
from helpers.tools import Conversation

PHASES = {"deciding": ORANGE, "executing": GREEN, "answering": BLUE}


def conversation(talk: Conversation, subtitle: str) -> Picture:
    """The steps of a conversation on a time axis: the model decides, code runs, it answers."""
    steps = [step for step in talk.steps if step.phase in PHASES]
    shares = {phase: talk.seconds(phase) for phase in PHASES}
    whole = sum(shares.values()) or 1.0
    title = f"{shares['deciding'] / whole:.0%} of the wait went into deciding what to call"
    with rc_context(STYLE):
        drawn, axes = blank(title, subtitle, height=1.2 + 0.4 * len(steps))
        for row, step in enumerate(steps):
            axes.barh(row, step.seconds, left=step.start_s, color=PHASES[step.phase], height=0.6)
            what = " ".join(step.what.split())
            what = what if len(what) < 48 else what[:45] + "..."
            axes.text(step.start_s, row - 0.42, what, fontsize=8, color=GREY, va="bottom")
        axes.set_yticks(range(len(steps)), [step.phase for step in steps])
        axes.set_ylim(len(steps) - 0.5, -0.9)
        axes.set_xlim(left=0)
        axes.set_xlabel("seconds from the question")
        axes.grid(False, axis="y")
    return drawn


def cost(table: pd.DataFrame, subtitle: str) -> Picture:
    """Time to first token against the number of tools in the prompt.

    Args:
        table: indexed by the number of tools; columns ``fresh_ms`` (a prompt never seen) and
            ``repeated_ms`` (one in the server's prefix cache).
        subtitle: what was measured, where.
    """
    last = table.iloc[-1]
    title = (
        f"{table.index[-1]} tools: {last.fresh_ms:.0f} ms to the first token, "
        f"{last.repeated_ms:.0f} ms when the prompt is cached"
    )
    with rc_context(STYLE):
        drawn, axes = blank(title, subtitle)
        axes.plot(table.index, table.fresh_ms, color=ORANGE, marker="o", label="fresh prompt")
        axes.plot(table.index, table.repeated_ms, color=BLUE, marker="s", label="repeated prompt")
        axes.set_xlabel("tools in the prompt")
        axes.set_ylabel("time to first token, ms")
        axes.set_xticks(table.index)
        axes.set_ylim(0, 1.15 * table.fresh_ms.max())
        axes.legend(loc="upper left")
    return drawn
