"""The figures of function calling (notebook 05): a conversation, its mistakes, its time."""

from textwrap import fill

import numpy as np
import pandas as pd

from helpers.errors import CourseError
from helpers.plots.style import BLUE, GREEN, GREY, ORANGE, Picture, picture, styled
from helpers.tools import Conversation, Evaluation
from helpers.tools.questions import CAUSES, RIGHT

PHASES = {"deciding": ORANGE, "executing": GREEN, "answering": BLUE}


@styled
def conversation(talk: Conversation, subtitle: str) -> Picture:
    """The steps of a conversation on a time axis: the model decides, code runs, it answers.

    Args:
        talk: what ``tools.run_tools`` returned.
        subtitle: what was measured, and where.
    """
    seconds = {phase: talk.seconds(phase) for phase in PHASES}
    share = seconds["deciding"] / (sum(seconds.values()) or 1.0)
    title = f"{share:.0%} of the wait went into deciding what to call"
    figure, (axes,) = picture(title, subtitle, height=1.2 + 0.4 * len(talk.steps))
    for row, step in enumerate(talk.steps):
        axes.barh(row, step.seconds, left=step.start_s, color=PHASES[step.phase], height=0.6)
        what, place = " ".join(step.what.split())[:48], (step.start_s, row - 0.42)
        axes.text(*place, what, fontsize=8, color=GREY, va="bottom", parse_math=False)
    axes.set_yticks(range(len(talk.steps)), [step.phase for step in talk.steps])
    axes.set(xlim=(0, None), ylim=(len(talk.steps) - 0.5, -0.9), xlabel="seconds from the question")
    axes.grid(visible=False, axis="y")
    return figure


@styled
def phases(table: pd.DataFrame, subtitle: str) -> Picture:
    """Where the time of a conversation goes, for each number of users.

    Args:
        table: from ``tools.phases``.
        subtitle: what was measured, and where.

    Raises:
        CourseError: no conversation got an answer; users without any are left out.
    """
    table = table[table.whole_p95_ms.notna()]
    if table.empty:
        raise CourseError("no conversation got an answer", "see their problems and stopped")
    spent = table[[f"{phase}_ms" for phase in PHASES]].set_axis(list(PHASES), axis=1)
    users, whole = table.index, spent.sum(axis=1).to_numpy()
    slow, minute = table["whole_p95_ms"].to_numpy(), table["per_minute"].to_numpy()
    title = f"{users[-1]} users wait {whole[-1] / whole[0]:.1f} times as long as {users[0]}, "
    title += f"and get {minute[-1] / minute[0]:.1f} times the answers"
    figure, (axes,) = picture(title, subtitle)
    spent.plot.bar(stacked=True, ax=axes, color=list(PHASES.values()), width=0.6, rot=0)
    axes.plot(slow, "_", markersize=24, color=GREY, label="95 % are faster")
    for row, count in enumerate(minute):
        axes.text(row, slow[row], f"{count:.0f} a minute\n", ha="center", color=GREY)
    axes.set(xlabel="concurrent users", ylabel="a conversation's mean time, ms")
    axes.set_ylim(0, 1.35 * slow.max())
    axes.grid(visible=False, axis="x")
    axes.legend(loc="upper left", ncols=4)
    return figure


@styled
def mistakes(evaluation: Evaluation) -> Picture:
    """How often each kind of question went right, and in which way it went wrong.

    Args:
        evaluation: what ``tools.evaluate`` returned.
    """
    found = evaluation.frame
    counts = pd.crosstab(found["kind"], found["cause"]).reindex(found["kind"].unique())
    counts = counts[[cause for cause in (RIGHT, *CAUSES) if cause in counts]]
    wrong = counts.drop(columns=RIGHT, errors="ignore").sum()
    title = f"All {len(found)} questions right"
    if wrong.sum():
        often = f"{wrong.idxmax()} ({wrong.max()})"
        title = f"{wrong.sum()} of {len(found)} questions went wrong, most often: {often}"
    subtitle = f"{evaluation.title}; tool_choice {evaluation.tool_choice}"
    figure, (axes,) = picture(title, subtitle, height=1.6 + 0.32 * len(counts))
    share = counts.div(counts.sum(axis=1), axis=0).to_numpy()
    sign = np.where(counts.columns == RIGHT, 1, -1)  # right is blue, wrong is red
    axes.imshow(sign * share, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        ink = "white" if share[row, column] > 0.6 else "black"
        axes.text(column, row, str(count or ""), ha="center", va="center", color=ink)
    axes.set_xlabel("Outcome of each question (darker: a larger share of that kind)")
    axes.set_yticks(range(len(counts)), list(counts.index))
    names = [fill(str(name), 10) for name in counts]
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    return figure
