"""The figures of several replicas (notebook 08): what they carry, what losing one costs, a day."""

from collections.abc import Mapping, Sequence

import numpy as np

from helpers import measure
from helpers.plots.style import BLUE, GREEN, GREY, ORANGE, RED, Picture, bars, picture, styled
from helpers.records import Run, refuse_partial
from helpers.serve.fleet import Fleet


@styled
def replicas(runs: Sequence[Run]) -> Picture:
    """Output tokens per second of one replica and of several (labels name them).

    Args:
        runs: the first of one replica, the last of the most; each with its number of users.
    """
    one, most = runs[0], runs[-1]
    rates = [measure.interval(run, "output_tokens_per_s") for run in runs]
    title = str(measure.compare(one, most)).replace("output_tokens_per_s", "Output tokens/s")
    figure, (axes,) = picture(title, most.title, height=1.8 + 0.5 * len(runs))
    bars(axes, [run.label for run in runs], rates, [f"{rate.value:.0f}" for rate in rates])
    ideal = rates[0].value * (most.users or 1) / (one.users or 1)
    axes.axvline(ideal, color=GREY, linestyle="--", label="ideal: every user as fast as the first")
    axes.margins(x=0.12)
    axes.set_xlabel("output tokens/s, all users (line at the end of a bar: 95 % interval)")
    figure.legend(loc="outside lower center")
    return figure


@styled
def policies(runs: Mapping[str, Sequence[Run]]) -> Picture:
    """TTFT p95 of chats under each routing policy, and how much of them came from prefix caches.

    Args:
        runs: of chats with several turns, the same number (two or more) for each policy.
    """
    waits = [[measure.summary(run).ttft_p95_ms / 1000 for run in many] for many in runs.values()]
    cached = [[100 * _cached(run) for run in many] for many in runs.values()]
    title = f"Waiting under {len(runs)} router policies, and what the prefix caches spared"
    figure, panels = picture(title, next(iter(runs.values()))[0].title, columns=2)
    for axes, values in zip(panels, (waits, cached), strict=True):
        means = [_mean(each) for each in values]
        bars(axes, list(runs), means, [f"{mean.value:.3g}" for mean in means])
        axes.plot(values, range(len(values)), "o", color=ORANGE)
        axes.margins(x=0.2)
    panels[0].set_xlabel("TTFT p95, s (dots: runs; line: 95 % interval)")
    panels[1].set_xlabel("prompt tokens from a prefix cache, %")
    return figure


def _cached(run: Run) -> float:
    return sum(r.cached_tokens for r in run.ok) / sum(r.prompt_tokens for r in run.ok)


def _mean(values: Sequence[float]) -> measure.Interval:
    """The mean of a few runs with its 95 % interval (Student's t)."""
    t = {2: 12.71, 3: 4.30, 4: 3.18}.get(len(values), 2.78)
    mean, error = float(np.mean(values)), float(t * np.std(values, ddof=1) / len(values) ** 0.5)
    return measure.Interval(value=mean, low=max(0.0, mean - error), high=mean + error)


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
    failed, lost = run.failed, len(run.failed)
    causes = ", ".join(sorted({record.cause for record in failed}))
    title = f"{lost} of {len(run.records)} requests {'was' if lost == 1 else 'were'} lost"
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
