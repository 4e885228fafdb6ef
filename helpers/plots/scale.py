"""Pictures of several replicas: what they carry, what a policy does, what a lost one costs."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context

from helpers import measure
from helpers.plots.load import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, STYLE, bars, blank
from helpers.plots.picture import Picture
from helpers.records import Run
from helpers.serve.fleet import Fleet

_LINES = ((ORANGE, "--"), (RED, ":"), (PURPLE, "-."), (BLUE, "-"), (GREEN, "-"))


def replicas(runs: Sequence[Run]) -> Picture:
    """Output tokens per second of one replica and of several (labels name them)."""
    rates = [measure.interval(run, "output_tokens_per_s") for run in runs]
    times = rates[-1].value / rates[0].value
    with rc_context(STYLE):
        title = f"{runs[-1].label} give {times:.2f} times the tokens of {runs[0].label}"
        figure, axes = blank(title, runs[-1].title, height=1.6 + 0.5 * len(runs))
        bars(axes, rates, [run.label for run in runs], "{:.0f}")
        axes.set_xlabel("output tokens/s, all users (bar: 95 % interval)")
    return figure


def policies(runs: Mapping[str, Run]) -> Picture:
    """TTFT of chats against the turn, a line a routing policy; beside it, what came from caches.

    Args:
        runs: of chats with several turns, by policy.
    """
    waits = {name: measure.interval(run, "ttft_p95_ms").value for name, run in runs.items()}
    best, worst = min(waits, key=waits.get), max(waits, key=waits.get)
    times = waits[worst] / waits[best]
    with rc_context(STYLE):
        title = f"Chats wait {times:.1f} times as long (TTFT p95) under {worst} as under {best}"
        figure, (left, right) = blank(title, next(iter(runs.values())).title, columns=2)
        for (name, run), (color, line) in zip(runs.items(), _LINES, strict=False):
            turns = sorted({record.turn for record in run.ok})
            mean = [np.mean([r.ttft_s for r in run.ok if r.turn == turn]) for turn in turns]
            left.plot(
                [turn + 1 for turn in turns], mean,
                color=color, linestyle=line, marker="o", label=name,
            )  # fmt: skip
        left.set_ylim(bottom=0)
        left.set_xlabel("question number in the chat")
        left.set_ylabel("time to first token (TTFT), mean, s")
        figure.legend(loc="outside lower center", ncols=len(runs), fontsize=9)
        cached = []
        for run in runs.values():
            found, asked = np.sum([(r.cached_tokens, r.prompt_tokens) for r in run.ok], axis=0)
            cached.append(100 * found / asked)
        colors = [color for color, _ in _LINES[: len(cached)]]
        right.barh(range(len(cached)), cached, color=colors, height=0.6)
        right.set_yticks(range(len(cached)), list(runs))
        right.invert_yaxis()
        right.set_xlim(0, 100)
        right.grid(axis="y", visible=False)
        right.set_xlabel("prompt tokens found in the prefix cache, %")
    return figure


def events(run: Run, marks: Mapping[str, float], every_s: float = 1.0) -> Picture:
    """Tokens per second over a run, with what happened marked and each failed request crossed.

    Args:
        run: during which something happened.
        marks: what happened, and when, seconds from the start of the run.
        every_s: width of the steps.
    """
    times, weights = measure.token_times(run)
    edges = np.arange(0, times.max() + every_s, every_s)
    rate = np.histogram(times, edges, weights=weights)[0] / every_s
    failed = [record for record in run.records if not record.ok]
    causes = ", ".join(sorted({record.cause for record in failed}))
    said = f"{len(failed)} of {len(run.records)} requests were lost"
    with rc_context(STYLE):
        title = f"{said} ({causes}), the others went on" if failed else f"{said}: none"
        figure, axes = blank(title, f"{run.title}; {run.label}")
        axes.stairs(rate, edges, color=BLUE, fill=True, alpha=0.35, label="output tokens/s")
        top = 1.25 * rate.max()
        for what, at in marks.items():
            axes.axvline(at, color=GREY, linestyle="--")
            axes.annotate(f" {what}", (at, top), color=GREY, va="top")
        heights = [0.04 * top * (number + 1) for number in range(len(failed))]
        axes.plot(
            [r.end_s for r in failed],
            heights,
            "x",
            color=RED,
            markeredgewidth=2,
            label="a request lost",
        )
        axes.set_ylim(0, top)
        axes.set_xlabel("time since the start of the run, s")
        axes.set_ylabel("output tokens/s, all users")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def day(plan: Fleet, subtitle: str) -> Picture:
    """A day's traffic under the replicas that carry it, and what each way to rent them costs.

    Args:
        plan: what ``sizing.fleet`` returned.
        subtitle: where capacity and prices come from.
    """
    hours, costs = plan.hours, plan.costs.usd_per_day
    best = costs.idxmin()
    with rc_context(STYLE):
        title = f"From {hours.replicas.min()} to {hours.replicas.max()} replicas"
        if costs.iloc[0]:
            saved = 1 - costs[best] / costs.iloc[0]
            title += f": {best} costs {saved:.0%} less than the peak all day"
        figure, (left, right) = blank(title, subtitle, columns=2)
        edges = np.arange(len(hours) + 1)
        left.stairs(hours.replicas * plan.per_replica, edges, color=GREEN, fill=True, alpha=0.25,
                    label="what the replicas carry")  # fmt: skip
        left.stairs(hours.load, edges, color=BLUE, linewidth=1.8, label="traffic")
        left.set_xticks(range(0, 25, 6))
        left.set_ylim(0, 1.3 * max(left.get_ylim()[1], 1e-9))
        left.set_xlabel("hour of the day")
        left.set_ylabel(f"load, {plan.unit}")
        left.legend(loc="upper left", fontsize=9)
        right.barh(range(len(costs)), costs, color=BLUE, height=0.6)
        for row, usd in enumerate(costs):
            right.annotate(f" ${usd:.2f}", (usd, row), va="center")
        right.set_yticks(range(len(costs)), costs.index)
        right.invert_yaxis()
        right.margins(x=0.25)
        right.grid(axis="y", visible=False)
        right.set_xlabel("US dollars a day")
    return figure
