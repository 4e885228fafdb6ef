"""Pictures of function calling: a conversation, its mistakes, and what it costs in time."""

from textwrap import fill

import pandas as pd
from matplotlib import rc_context
from matplotlib.patches import Rectangle

from helpers.errors import CourseError
from helpers.plots.load import BLUE, GREEN, GREY, ORANGE, STYLE, blank
from helpers.plots.picture import Picture
from helpers.tools import Conversation, Evaluation
from helpers.tools.questions import CAUSES, RIGHT

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
            axes.text(step.start_s, row - 0.42, what, fontsize=8, color=GREY, va="bottom",
                      parse_math=False)  # fmt: skip
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


def phases(table: pd.DataFrame, subtitle: str) -> Picture:
    """Where the time of a conversation goes, for each number of users.

    Args:
        table: from ``tools.phases``.
        subtitle: what was measured, where.

    Raises:
        CourseError: no conversation got an answer; users without any are left out.
    """
    table = table[table.whole_p95_ms.notna()]
    if table.empty:
        raise CourseError("no conversation got an answer", "see their problems and stopped")
    users = [str(count) for count in table.index]
    whole = table[[f"{phase}_ms" for phase in PHASES]].sum(axis=1)
    title = (
        f"{users[-1]} users wait {whole.iloc[-1] / whole.iloc[0]:.1f} times as long as "
        f"{users[0]}, and get {table.per_minute.iloc[-1] / table.per_minute.iloc[0]:.1f} times "
        "the answers"
    )
    with rc_context(STYLE):
        drawn, axes = blank(title, subtitle)
        below = pd.Series(0.0, index=table.index)
        for phase, color in PHASES.items():
            axes.bar(users, table[f"{phase}_ms"], bottom=below, color=color, label=phase, width=0.6)
            below += table[f"{phase}_ms"]
        axes.plot(users, table.whole_p95_ms, "_", color=GREY, markersize=24, markeredgewidth=2,
                  label="95 % are faster than")  # fmt: skip
        for name, row in zip(users, table.itertuples(), strict=True):
            axes.annotate(f"{row.per_minute:.0f} a minute", (name, row.whole_p95_ms),
                          (0, 6), textcoords="offset points", ha="center", color=GREY)  # fmt: skip
        axes.set_xlabel("concurrent users")
        axes.set_ylabel("a conversation's mean time, ms")
        axes.set_ylim(0, 1.35 * table.whole_p95_ms.max())
        axes.grid(False, axis="x")
        axes.legend(loc="upper left", ncols=4)
    return drawn


def mistakes(evaluation: Evaluation) -> Picture:
    """How often each kind of question went right, and in which way it went wrong."""
    counts = pd.crosstab(
        [one.question.kind for one in evaluation.verdicts],
        [one.cause for one in evaluation.verdicts],
    )
    kinds = list(dict.fromkeys(one.question.kind for one in evaluation.verdicts))
    outcomes = [cause for cause in (RIGHT, *CAUSES) if cause in counts.columns]
    counts = counts.loc[kinds, outcomes]
    wrong = counts.drop(columns=RIGHT, errors="ignore").sum()
    title = f"All {counts.to_numpy().sum()} questions right"
    if len(wrong):
        title = (
            f"{wrong.sum()} of {counts.to_numpy().sum()} questions went wrong, "
            f"most often: {wrong.idxmax()} ({wrong.max()})"
        )
    with rc_context(STYLE):
        drawn, axes = blank(title, f"{evaluation.title}; tool_choice {evaluation.tool_choice}",
                            height=1.6 + 0.32 * len(kinds))  # fmt: skip
        for column, outcome in enumerate(outcomes):
            color = BLUE if outcome == RIGHT else ORANGE
            for row, kind in enumerate(kinds):
                count = counts.loc[kind, outcome]
                share = count / counts.loc[kind].sum()
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=color, alpha=share,
                                         linewidth=0))  # fmt: skip
                ink = "white" if color == BLUE and share > 0.6 else "black"
                axes.text(column, row, count or "", ha="center", va="center", color=ink)
        axes.set_xlim(-0.5, len(outcomes) - 0.5)
        axes.set_ylim(len(kinds) - 0.5, -0.5)
        axes.set_yticks(range(len(kinds)), kinds)
        axes.set_xticks(range(len(outcomes)), [fill(name, 10) for name in outcomes])
        axes.tick_params(length=0)
        axes.grid(False)
        axes.set_xlabel("what came of it: number of questions; colour: part of its kind")
    return drawn
