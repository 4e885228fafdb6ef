"""The figures of a measurement (notebook 04)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from helpers import measure
from helpers.errors import CourseError
from helpers.plots.style import BLUE, GREEN, GREY, ORANGE, RED, Picture, picture, styled
from helpers.records import Run, refuse_partial


@styled
def throughput(runs: Sequence[Run]) -> Picture:
    """Output tokens per second against the load: the saturation curve.

    Args:
        runs: of a sweep or search, by users or by rate.
    """
    runs, loads, unit = _by_load(runs)
    rate, low, high = _intervals(runs, "output_tokens_per_s")
    best = np.argmax(rate)
    title = f"The most that was measured: {rate[best]:.0f} tokens/s, "
    title += f"{rate[best] / rate[0]:.1f} times those at {_amount(loads[0], unit)}"
    figure, (axes,) = picture(title, runs[0].title)
    top = 1.2 * np.nanmax([*rate, *high])
    few = np.geomspace(loads[0], min(top / rate[0] * loads[0], loads[-1]))
    name = "ideal: every user as fast as the first"
    axes.plot(few, rate[0] / loads[0] * few, ":", color=GREY, label=name)
    axes.plot(loads, rate, "o-", color=BLUE, label="measured (bar: 95 % interval)")
    axes.vlines(loads, low, high, color=BLUE)
    if unit == "users" and len(runs) > 2:
        bend = measure.saturation(runs)
        name = f"90 % of the most by the fitted curve: {bend.users:.0f} users"
        axes.axvline(bend.users, color=ORANGE, linestyle="--", label=name)
    axes.set(ylim=(0, top), ylabel="output tokens/s, all users")
    _load_axis(axes, loads, unit)
    figure.legend(loc="outside lower left", ncols=2)
    return figure


@styled
def latency(runs: Sequence[Run]) -> Picture:
    """TTFT and ITL percentiles against the load.

    Args:
        runs: of a sweep or search, by users or by rate.
    """
    runs, loads, unit = _by_load(runs)
    rows = measure.table(runs)
    waits = rows["ttft_p95_ms"].to_numpy()
    grows = f"{waits[-1] / waits[0]:.0f}-fold" if np.isfinite(waits[[0, -1]]).all() else "endlessly"
    title = f"From {loads[0]:g} to {loads[-1]:g} {unit} the wait for the first token (p95) grows"
    figure, panels = picture(f"{title} {grows}", runs[0].title, columns=2)
    names = ("ttft", "time to first token"), ("itl", "gap between tokens")
    for axes, (name, long) in zip(panels, names, strict=True):
        for rank, color, line in ((50, BLUE, "o-"), (95, ORANGE, "o--"), (99, RED, "o:")):
            axes.plot(loads, rows[f"{name}_p{rank}_ms"], line, color=color, label=f"p{rank}")
        _, low, high = _intervals(runs, f"{name}_p95_ms")
        axes.vlines(loads, low, high, color=ORANGE, label="95 % interval of p95")
        axes.set(ylim=(0, None), ylabel=f"{long} ({name.upper()}), ms")
        _load_axis(axes, loads, unit)
    panels[0].legend()
    return figure


@styled
def capacity(runs: Sequence[Run], objective: measure.Objective) -> Picture:
    """The runs of a search or sweep against an objective: which loads meet it, which miss it.

    Args:
        runs: by users or by rate.
        objective: the promise to the customers; one panel for each of its demands.
    """
    found = measure.capacity(runs, objective)
    title = f"The promise holds for {_amount(found.load, found.unit)} "
    upper = f"to {found.high:g}" if found.high < np.inf else "or more"
    title += f"(95 % interval {found.low:g} {upper})"
    demands = objective.limits_ms
    runs, loads, unit = _by_load(runs)
    figure, panels = picture(title, runs[0].title, columns=len(demands))
    for axes, (name, limit) in zip(panels, demands.items(), strict=True):
        middle, low, high = _intervals(runs, f"{name}_p{objective.percentile:g}_ms")
        axes.errorbar(loads, middle, [middle - low, high - middle], color=BLUE, marker="o")
        axes.axhline(limit, color=RED, linestyle="--", label=f"promise: {limit:g} ms")
        if any(unsure := ~(high <= limit) & ~(low > limit)):
            axes.plot(loads[unsure], middle[unsure], "ow", mec=BLUE, zorder=3, label="undecided")
        axes.axvspan(loads[0], max(found.load, loads[0]), color=GREEN, alpha=0.12)
        axes.set_ylim(0, 1.12 * max(axes.get_ylim()[1], limit))
        axes.set_ylabel(f"{name.upper()} p{objective.percentile:g}, ms (bar: 95 % interval)")
        axes.legend(loc="upper left")
        _load_axis(axes, loads, unit)
    return figure


@styled
def request(run: Run) -> Picture:
    """One request taken apart on a time axis: of all that got a token, the one of median length.

    Raises:
        CourseError: none got a token.
    """
    refuse_partial(run)
    good = sorted((r for r in run.ok if r.token_us), key=lambda r: r.e2e_s)
    if not good:
        raise CourseError(f"{run.label}: no request got a token", "see run.frame() for the causes")
    record = good[len(good) // 2]
    tokens = np.array(record.token_us) / 1e3 + (record.sent_s - record.origin_s) * 1e3
    first, end = tokens[0], record.e2e_s * 1e3
    title = f"{first / end:.0%} of this request's {end:.0f} ms pass before its first token"
    figure, (axes,) = picture(title, f"{run.title}; {run.label}", height=2.6)
    axes.barh(0, first, color=ORANGE, height=0.5, label="waiting and reading the prompt: TTFT")
    generating = f"generating {record.output_tokens} tokens"
    axes.barh(0, end - first, left=first, color=BLUE, alpha=0.25, height=0.5, label=generating)
    axes.vlines(tokens, -0.25, 0.25, color=BLUE, linewidth=1, label="a token arrives; gaps: ITL")
    axes.set(yticks=[], ylim=(-0.4, 1.3), xlabel="time since the request, ms")
    axes.legend(loc="upper left", ncols=3, fontsize=9)
    return figure


@styled
def timeline(run: Run) -> Picture:
    """Every request of a run as a line from start to end; the steady window is shaded."""
    refuse_partial(run)
    records, rows = run.records, range(len(run.records))
    title = f"{len(records)} requests, at most {measure.most_at_once(run)} at the same time"
    figure, (axes,) = picture(title, f"{run.title}; {run.label}")
    name = "steady window" if measure.is_steady(run) else "what is counted (not steady)"
    axes.axvspan(*measure.window(run), color=GREEN, alpha=0.1, label=name)
    starts, ends = [r.origin_s for r in records], [r.end_s for r in records]
    first = [r.end_s if r.ttft_s is None else r.origin_s + r.ttft_s for r in records]
    axes.hlines(rows, starts, first, color=ORANGE, label="to first token")
    axes.hlines(rows, first, ends, color=BLUE, label="tokens arrive")
    failed = [row for row in rows if records[row].cause not in ("", "interrupted")]
    axes.plot([ends[row] for row in failed], failed, "x", color=RED, label="failed")
    axes.invert_yaxis()
    axes.set(xlabel="time since the start of the run, s", ylabel="requests, in the order sent")
    axes.legend(loc="lower left")
    return figure


@styled
def server_view(run: Run) -> Picture:
    """What customers felt above what the server saw, on one time axis."""
    refuse_partial(run)
    view = pd.DataFrame(run.samples, columns=["t_s", "running", "waiting", "kv_cache_usage"])
    busiest = view[["running", "waiting"]].max().fillna(0)
    title = f"While {run.label} ask, up to {busiest.waiting:.0f} requests wait inside the server"
    figure, (top, below) = picture(title, run.title, rows=2, height=5)
    seen = [(r.origin_s, r.ttft_s * 1e3) for r in run.ok if r.ttft_s is not None]
    top.plot([sent for sent, _ in seen], [ms for _, ms in seen], "o", color=ORANGE)
    top.set(ylim=(0, None), ylabel="TTFT of a request\nsent then, ms")
    below.step(view.t_s, view.running, "-", where="post", color=BLUE, label="running")
    below.step(view.t_s, view.waiting, "--", where="post", color=RED, label="waiting")
    below.set(ylim=(0, 1.3 * max(*busiest, 1)), ylabel="requests in the server")
    below.legend(loc="upper right", ncols=2)
    if view.kv_cache_usage.notna().any():
        right = below.twinx()
        right.plot(view.t_s, 100 * view.kv_cache_usage, ":", color=GREEN, label="KV cache")
        right.set(ylim=(0, 100), ylabel="KV cache in use, %\n(dotted)")
        right.grid(visible=False)
    below.set_xlabel("time since the start of the run, s")
    return figure


def _load_axis(axes: Axes, loads: np.ndarray, unit: str) -> None:
    axes.set_xscale("log", base=2)
    near = np.diff(np.log2(loads), prepend=-9) < 0.3  # their labels would lie on each other
    axes.set_xticks(loads, np.where(near, "", [f"{load:g}" for load in loads]))
    axes.minorticks_off()
    axes.set_xlabel("concurrent users" if unit == "users" else unit)


def _by_load(runs: Sequence[Run]) -> tuple[list[Run], np.ndarray, str]:
    """The runs in order of their loads, the loads, and their unit."""
    ordered = sorted(runs, key=lambda run: measure.level(run)[0])
    loads = [measure.level(run)[0] for run in ordered]
    return ordered, np.array(loads), measure.level(runs[0])[1]


def _amount(load: float, unit: str) -> str:
    return "1 user" if (load, unit) == (1, "users") else f"{load:g} {unit}"


def _intervals(runs: Sequence[Run], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A measure of each run and the ends of its interval, not a number where nobody knows."""
    refuse_partial(*runs)
    found = []
    for run in runs:
        try:
            one = measure.interval(run, name)
        except CourseError:  # without one good answer it still has its place on the axis
            one = measure.Interval(value=np.nan, low=np.nan, high=np.nan)
        ends = (one.low, one.high) if one.high < np.inf else (np.nan, np.nan)
        found.append((one.value, *ends))
    middle, low, high = np.array(found).T
    return middle, low, high
