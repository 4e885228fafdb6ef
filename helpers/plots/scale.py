"""The figures of several replicas (notebook 06): what they carry, what losing one costs, a day."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from helpers import measure
from helpers.plots.style import BLUE, GREEN, GREY, LINES, RED, Picture, bars, picture, styled
from helpers.records import Run, refuse_partial
from helpers.serve.fleet import Fleet


@styled
def replicas(runs: Sequence[Run]) -> Picture:
    """Output tokens per second of one replica and of several (labels name them)."""
    rates = [measure.interval(run, "output_tokens_per_s") for run in runs]
    times = rates[-1].value / rates[0].value
    title = f"{runs[-1].label} give {times:.2f} times the tokens of {runs[0].label}"
    figure, (axes,) = picture(title, runs[-1].title, height=1.6 + 0.5 * len(runs))
    bars(axes, [run.label for run in runs], rates, [f"{rate.value:.0f}" for rate in rates])
    axes.margins(x=0.12)
    axes.set_xlabel("output tokens/s, all users (bar: 95 % interval)")
    return figure


@styled
def policies(runs: Mapping[str, Run]) -> Picture:
    """TTFT of chats from question to question, and how much of them came from prefix caches.

    Args:
        runs: of chats with several turns, one for each routing policy.
    """
    waits = pd.Series({name: measure.summary(run).ttft_p95_ms for name, run in runs.items()})
    title = f"Chats wait {waits.max() / waits.min():.1f} times as long (TTFT p95) under "
    title += f"{waits.idxmax()} as under {waits.idxmin()}"
    figure, (left, right) = picture(title, next(iter(runs.values())).title, columns=2)
    cached = []
    for (name, run), (color, line) in zip(runs.items(), LINES, strict=False):
        good = run.frame().query("cause == ''")
        mean = good.groupby("turn").ttft_s.mean()
        left.plot(mean.index + 1, mean, line, color=color, label=name)
        cached.append(100 * good.cached_tokens.sum() / good.prompt_tokens.sum())
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(ylim=(0, None), ylabel="time to first token (TTFT), mean, s")
    left.set_xlabel("question number in the chat")
    figure.legend(loc="outside lower center", ncols=len(runs), fontsize=9)
    bars(right, list(runs), cached, [f"{share:.0f}" for share in cached])
    for bar, (color, _) in zip(right.patches, LINES, strict=False):
        bar.set_color(color)
    right.set(xlim=(0, 100), xlabel="prompt tokens found in the prefix cache, %")
    return figure


@styled
def events(run: Run, marks: Mapping[str, float]) -> Picture:
    """Tokens per second over a run, with what happened marked and each failed request crossed.

    Args:
        run: during which something happened.
        marks: what happened, and when, seconds from the start of the run.
    """
    refuse_partial(run)
    times, weights = measure.token_times(run)
    edges = np.arange(0, times.max() + 1)
    rate = np.histogram(times, edges, weights=weights)[0]
    failed = run.failed
    causes = ", ".join(sorted({record.cause for record in failed}))
    title = f"{len(failed)} of {len(run.records)} requests were lost"
    title += f" ({causes}), the others went on" if failed else ""
    figure, (axes,) = picture(title, f"{run.title}; {run.label}")
    axes.stairs(rate, edges, color=BLUE, fill=True, alpha=0.35, label="output tokens/s")
    top = 1.25 * rate.max()
    for what, at in marks.items():
        axes.axvline(at, color=GREY, linestyle="--")
        axes.annotate(f" {what}", (at, top), color=GREY, va="top")
    ends, heights = [r.end_s for r in failed], 0.04 * top * np.arange(1, len(failed) + 1)
    axes.plot(ends, heights, "x", color=RED, markeredgewidth=2, label="a request lost")
    axes.set(ylim=(0, top), ylabel="output tokens/s, all users")
    axes.set_xlabel("time since the start of the run, s")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@styled
def day(plan: Fleet, subtitle: str) -> Picture:
    """A day's traffic under the replicas that carry it, and what each way to rent them costs.

    Args:
        plan: what :func:`helpers.serve.fleet.fleet` returned.
        subtitle: where capacity and prices come from.
    """
    hours, costs = plan.hours, plan.costs.usd_per_day
    saved = 1 - costs.min() / costs.iloc[0]
    title = f"From {hours.replicas.min()} to {hours.replicas.max()} replicas: "
    title += f"{costs.idxmin()} costs {saved:.0%} less than the peak all day"
    figure, (left, right) = picture(title, subtitle, columns=2)
    carried, edges = hours.replicas * plan.per_replica, np.arange(len(hours) + 1)
    left.stairs(carried, edges, color=GREEN, fill=True, alpha=0.25, label="what the replicas carry")
    left.stairs(hours.load, edges, color=BLUE, linewidth=1.8, label="traffic")
    left.set(xlabel="hour of the day", ylabel="load, requests/s", xticks=range(0, 25, 6))
    left.set_ylim(0, 1.3 * left.get_ylim()[1])
    left.legend(loc="upper left", fontsize=9)
    bars(right, list(costs.index), list(costs), [f"${usd:.2f}" for usd in costs])
    right.margins(x=0.25)
    right.set_xlabel("US dollars a day")
    return figure
