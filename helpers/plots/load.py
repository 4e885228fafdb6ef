"""Every figure of a measurement, in one style: units on the axes, the finding in the title.

Each function returns the ``Picture``; a notebook shows it, ``figure.savefig(path)`` keeps it.
"""

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from helpers import measure
from helpers.errors import CourseError
from helpers.measure import most_at_once
from helpers.plots.picture import Picture
from helpers.records import Run

if TYPE_CHECKING:
    import pandas

# Okabe and Ito's palette: told apart with every kind of colour vision.
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
GREY = "#6e7781"
COLOURS = BLUE, ORANGE, GREEN, RED, PURPLE, GREY
STYLE = {
    "figure.facecolor": "white",  # opaque, so that it reads on GitHub's dark page as well
    "figure.dpi": 110,
    "savefig.dpi": 110,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e1e4e8",
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titlecolor": GREY,
    "figure.titlesize": 12,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


def throughput(runs: Sequence[Run]) -> Picture:
    """Output tokens per second against the load (users, or a rate): the saturation curve."""
    rows, unit = _by_load(runs)
    loads, rate = rows["load"].to_numpy(), rows["output_tokens_per_s"].to_numpy()
    knee = loads[np.argmax(rate >= 0.95 * rate.max())]
    times = rate.max() / rate[0]
    title = (
        f"{rate.max():.0f} tokens/s at most: {times:.1f} times those at {_amount(loads[0], unit)},"
        f" reached at {_amount(knee, unit)}"
    )
    with rc_context(STYLE):
        figure, axes = blank(title, runs[0].title)
        ideal = rate[0] / loads[0] * loads
        axes.plot(loads, ideal, color=GREY, linestyle=":", label="if each more cost nothing")
        axes.plot(loads, rate, color=BLUE, marker="o", label="measured")
        axes.set_ylim(0, rate.max() * 1.25)
        axes.set_ylabel("output tokens/s, all users")
        _load_axis(axes, loads, unit)
        axes.legend(loc="lower right")
    return figure


def latency(runs: Sequence[Run]) -> Picture:
    """TTFT and ITL percentiles against the load (users, or a rate)."""
    rows, unit = _by_load(runs)
    loads, waits = rows["load"].to_numpy(), rows["ttft_p95_ms"].to_numpy()
    title = f"From {loads[0]:g} to {loads[-1]:g} {unit} the wait for the first token (p95) grows "
    title += f"{waits[-1] / waits[0]:.0f}-fold" if np.isfinite(waits[[0, -1]]).all() else "endless"
    with rc_context(STYLE):
        figure, (left, right) = blank(title, runs[0].title, columns=2)
        styles = {50: (BLUE, "-"), 95: (ORANGE, "--"), 99: (RED, ":")}
        for axes, name, long in (
            (left, "ttft", "time to first token"),
            (right, "itl", "gap between tokens"),
        ):
            for rank, (color, line) in styles.items():
                values = rows[f"{name}_p{rank}_ms"]
                axes.plot(loads, values, color=color, linestyle=line, marker="o", label=f"p{rank}")
            axes.set_ylim(bottom=0)
            axes.set_ylabel(f"{long} ({name.upper()}), ms")
            _load_axis(axes, loads, unit)
        left.legend()
    return figure


def capacity(runs: Sequence[Run], objective: measure.Objective) -> Picture:
    """The runs of a search or sweep against an objective: which loads meet it, which miss it."""
    found = measure.capacity(runs, objective)
    upper = f"{found.fails_at:g} are too many" if found.fails_at else "no limit was found"
    rank = objective.percentile
    demands = [(name, limit) for name, limit in (("ttft", objective.ttft_ms),
               ("tpot", objective.tpot_ms), ("e2e", objective.e2e_ms)) if limit]  # fmt: skip
    ordered = sorted(runs, key=lambda run: measure.level(run)[0])
    loads = [measure.level(run)[0] for run in ordered]
    with rc_context(STYLE):
        title = f"{found.load:g} {found.unit} keep the promise, {upper}"
        figure, panels = blank(title, runs[0].title, columns=len(demands))
        for axes, (name, limit) in zip(np.atleast_1d(panels), demands, strict=True):
            column = f"{name}_p{rank:g}_{'s' if name == 'e2e' else 'ms'}"
            lines = [_interval_or_nan(run, column) for run in ordered]
            unit = 1e3 if name == "e2e" else 1
            middle = np.array([line.value for line in lines]) * unit
            error = [middle - [line.low * unit for line in lines],
                     [line.high * unit for line in lines] - middle]  # fmt: skip
            axes.errorbar(loads, middle, np.abs(error), color=BLUE, marker="o", capsize=3)
            axes.axhline(limit, color=RED, linestyle="--")
            axes.annotate(
                f"promise: {limit:g} ms", (1, limit), xycoords=("axes fraction", "data"), color=RED,
                ha="right", va="bottom", bbox={"facecolor": "white", "linewidth": 0, "pad": 1},
            )  # fmt: skip
            axes.axvspan(loads[0], max(found.load, loads[0]), color=GREEN, alpha=0.12)
            axes.set_ylim(0, 1.12 * max(axes.get_ylim()[1], limit))
            axes.set_ylabel(f"{name.upper()} p{rank:g}, ms (bar: 95 % interval)")
            _load_axis(axes, np.array(loads), found.unit)
    return figure


def request(run: Run, index: int | None = None) -> Picture:
    """One request taken apart on a time axis, by default the one of median length.

    Args:
        run: whose request.
        index: position in ``run.ok``.
    """
    good = [record for record in run.ok if record.token_us]
    if not good:
        raise CourseError(f"{run.label}: no request got a token", "see run.frame() for the causes")
    record = sorted(good, key=lambda r: r.e2e_s)[len(good) // 2] if index is None else run.ok[index]
    origin = record.origin_s
    tokens = np.array(record.token_us) / 1e3 + (record.sent_s - origin) * 1e3
    first, end = tokens[0], record.e2e_s * 1e3
    with rc_context(STYLE):
        title = (
            f"{first / end:.0%} of the {end:.0f} ms of this request go by before its first token"
        )
        figure, axes = blank(title, f"{run.title}; {run.label}", height=2.6)
        axes.barh(0, first, color=ORANGE, height=0.5, label="waiting and reading the prompt: TTFT")
        axes.barh(0, end - first, left=first, color=BLUE, alpha=0.25, height=0.5,
                  label=f"generating {record.output_tokens} tokens")  # fmt: skip
        axes.vlines(
            tokens, -0.25, 0.25, color=BLUE, linewidth=1, label="a token arrives; gaps: ITL"
        )
        axes.set_yticks([])
        axes.set_ylim(-0.4, 1.3)
        axes.set_xlabel("time since the request, ms")
        axes.legend(loc="upper left", ncols=3, fontsize=9)
    return figure


def timeline(run: Run) -> Picture:
    """Every request of a run as a line from start to end; the steady window is shaded."""
    start, end = measure.window(run)
    records = run.records
    with rc_context(STYLE):
        title = f"{len(records)} requests, at most {most_at_once(run)} at the same time"
        figure, axes = blank(title, f"{run.title}; {run.label}")
        axes.axvspan(start, end, color=GREEN, alpha=0.1, label="steady window")
        rows = np.arange(len(records))
        first = [r.origin_s + (r.ttft_s if r.token_us else r.e2e_s) for r in records]
        axes.hlines(
            rows, [r.origin_s for r in records], first, color=ORANGE, label="to first token"
        )
        axes.hlines(rows, first, [r.end_s for r in records], color=BLUE, label="tokens arrive")
        failed = [(r.end_s, row) for row, r in enumerate(records) if not r.ok]
        if failed:
            axes.plot(*zip(*failed, strict=True), "x", color=RED, label="failed")
        axes.invert_yaxis()
        axes.set_xlabel("time since the start of the run, s")
        axes.set_ylabel("requests, in order of sending")
        axes.legend(loc="lower left")
    return figure


def server_view(run: Run) -> Picture:
    """What customers felt above what the server saw, on one time axis; below, its GPUs if read."""
    times = [sample["t_s"] for sample in run.samples]
    waiting = [sample.get("waiting", 0) for sample in run.samples]
    queue = f"up to {max(waiting, default=0):.0f} requests wait inside the server"
    with rc_context(STYLE):
        rows = 3 if run.gpu else 2
        title = f"While {run.label} ask, {queue}"
        figure, panels = blank(title, run.title, rows=rows, height=1.5 + 1.75 * rows)
        top, below, *_ = panels
        seen = [record for record in run.ok if record.token_us]
        top.plot([r.origin_s for r in seen], [r.ttft_s * 1e3 for r in seen], "o", color=ORANGE)
        top.set_ylabel("TTFT of a request\nsent then, ms")
        top.set_ylim(bottom=0)
        running = [sample.get("running", 0) for sample in run.samples]
        below.step(times, running, where="post", color=BLUE, label="running")
        below.step(times, waiting, where="post", color=RED, linestyle="--", label="waiting")
        below.set_ylabel("requests in the server")
        panels[-1].set_xlabel("time since the start of the run, s")
        if any("kv_cache_usage" in sample for sample in run.samples):
            right = below.twinx()
            usage = [100 * sample.get("kv_cache_usage", 0) for sample in run.samples]
            right.plot(times, usage, color=GREEN, linestyle=":", label="KV cache")
            right.set_ylim(0, 100)
            right.set_ylabel("KV cache in use, %", color=GREEN)
            right.grid(visible=False)
        below.set_ylim(0, 1.3 * max([*running, *waiting, 1]))  # room for the legend
        below.legend(loc="upper right", ncols=2)
        if run.gpu:
            _gpus(panels[-1], run.gpu)
    return figure


def _gpus(axes: Axes, readings: Sequence[dict]) -> None:
    """How busy each GPU was, from ``nvidia-smi``."""
    numbers = sorted({reading.get("gpu", 0) for reading in readings})
    for number, color in zip(numbers, cycle(COLOURS), strict=False):
        own = [r for r in readings if r.get("gpu", 0) == number and "gpu_busy" in r]
        axes.step(
            [r["t_s"] for r in own],
            [r["gpu_busy"] for r in own],
            where="post",
            color=color,
            label=f"GPU {number:.0f}",
        )
    axes.set_ylim(0, 105)
    axes.set_ylabel("GPU busy,\n% of the time")
    axes.legend(loc="lower right", ncols=4)


def loops(closed: Run, opened: Run) -> Picture:
    """TTFT of a closed and of an open loop: how many requests waited how long."""
    with rc_context(STYLE):
        waits = [measure.summary(run).ttft_p95_ms for run in (closed, opened)]
        title = "TTFT p95: {:.0f} ms in the closed loop, {:.0f} ms in the open one".format(*waits)
        figure, axes = blank(title, closed.title)
        for run, color, line, name in (
            (closed, BLUE, "-", "closed loop"),
            (opened, ORANGE, "--", "open loop"),
        ):
            ttft = np.sort([r.ttft_s * 1e3 for r in run.ok if r.token_us])
            share = 100 * np.arange(1, ttft.size + 1) / ttft.size
            axes.step(ttft, share, where="post", color=color, linestyle=line,
                      label=f"{name}: {run.label}")  # fmt: skip
        axes.axhline(95, color=GREY, linewidth=1, linestyle=":")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("time to first token (TTFT), ms")
        axes.set_ylabel("requests that waited no longer, %")
        axes.legend(loc="lower right")
    return figure


def compare(first: Sequence[Run], second: Sequence[Run]) -> Picture:
    """Two sweeps in one figure: two models, two engines, or two machines."""
    (left, unit), (right, _) = (_by_load(runs) for runs in (first, second))
    tables = [left, right]
    best = [table["output_tokens_per_s"].max() for table in tables]
    peaks = [max(runs, key=lambda run: measure.summary(run).output_tokens_per_s)
             for runs in (first, second)]  # fmt: skip
    difference = measure.compare(*peaks)
    verdict = f"{best[1] / best[0]:.2f} times the tokens" if difference.real else "the same speed"
    with rc_context(STYLE):
        title = f"{second[0].title} gives {verdict}"
        figure, (left, right) = blank(title, f"against {first[0].title}", columns=2)
        for table, runs, color, line in zip(
            tables, (first, second), (BLUE, ORANGE), ("-", "--"), strict=True
        ):
            style = {"color": color, "linestyle": line, "marker": "o", "label": runs[0].title}
            left.plot(table["load"], table["output_tokens_per_s"], **style)
            right.plot(table["load"], table["ttft_p95_ms"], **style)
        left.set_ylabel("output tokens/s, all users")
        right.set_ylabel("time to first token p95 (TTFT), ms")
        loads = np.array(sorted({*tables[0]["load"], *tables[1]["load"]}))
        for axes in (left, right):
            axes.set_ylim(bottom=0)
            _load_axis(axes, loads, unit)
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", fontsize=9)
    return figure


def ways(runs: Sequence[Run]) -> Picture:
    """The same load over several ways to the server (labels name them): what the line adds."""
    middles = [measure.interval(run, "ttft_p50_ms") for run in runs]
    best, *_, worst = sorted(range(len(runs)), key=lambda i: middles[i].value)
    added = middles[worst].value - middles[best].value
    real = measure.compare(runs[best], runs[worst], "ttft_p50_ms").real
    with rc_context(STYLE):
        slow = runs[worst].label
        title = f"{slow[:1].upper()}{slow[1:]}: {added:.1f} ms more than {runs[best].label}"
        title = title if real else "The ways differ by no more than noise"
        figure, axes = blank(title, runs[0].title, height=1.6 + 0.5 * len(runs))
        bars(axes, middles, [run.label for run in runs], "{:.1f} ms")
        axes.set_xlabel("median time to first token (TTFT), ms (bar: 95 % interval)")
    return figure


def bars(axes: Axes, values: Sequence[measure.Interval], labels: Sequence[str], form: str) -> None:
    """A bar a value with its interval, the first on top, each with its value as ``form`` has it."""
    for row, found in enumerate(values):
        error = [[max(found.value - found.low, 0)], [max(found.high - found.value, 0)]]
        axes.barh(row, found.value, xerr=error, color=BLUE, capsize=3, height=0.6)
        axes.annotate(" " + form.format(found.value), (found.high, row), va="center")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(axis="y", visible=False)


def blank(
    title: str, measured: str, *, columns: int = 1, rows: int = 1, height: float = 4
) -> tuple[Picture, Axes | np.ndarray]:
    """A figure with a title, what was measured where, and empty axes."""
    figure = Picture(figsize=(8, height), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=rows > 1)
    plain = {"parse_math": False}  # two prices are no formula
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", **plain)
    np.atleast_1d(axes)[0].set_title(measured, **plain)
    return figure, axes


def _load_axis(axes: Axes, loads: np.ndarray, unit: str = "users") -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xticks(loads)
    axes.minorticks_off()
    axes.set_xlabel("concurrent users" if unit == "users" else unit)


def _by_load(runs: Sequence[Run]) -> tuple["pandas.DataFrame", str]:
    """The table of a sweep in order of its loads, and their unit."""
    rows = measure.table(runs)
    rows["load"] = [measure.level(run)[0] for run in runs]
    return rows.sort_values("load"), measure.level(runs[0])[1]


def _amount(load: float, unit: str) -> str:
    return "1 user" if (load, unit) == (1, "users") else f"{load:g} {unit}"


def _interval_or_nan(run: Run, column: str) -> measure.Interval:
    """A run without a good answer still has its place on the axis."""
    try:
        return measure.interval(run, column)
    except CourseError:
        return measure.Interval(value=np.nan, low=np.nan, high=np.nan)
