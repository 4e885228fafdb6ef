"""Every figure of a measurement, in one style: units on the axes, the finding in the title.

Each function returns the ``Figure``; a notebook shows it, ``figure.savefig(path)`` keeps it.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from helpers import measure
from helpers.records import Run

# Okabe and Ito's palette: told apart with every kind of colour vision.
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
GREY = "#6e7781"
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


def throughput(runs: Sequence[Run]) -> Figure:
    """Output tokens per second against the number of users: the saturation curve."""
    rows = measure.table(runs).sort_values("users")
    users, rate = rows["users"].to_numpy(), rows["output_tokens_per_s"].to_numpy()
    knee = _knee(users, rate)
    times = rate.max() / rate[0]
    title = f"{rate.max():.0f} tokens/s at most: {times:.1f} times one user's, reached by {knee}"
    with rc_context(STYLE):
        figure, axes = _figure(title, runs[0].title)
        ideal = rate[0] / users[0] * users
        axes.plot(users, ideal, color=GREY, linestyle=":", label="if users cost nothing")
        axes.plot(users, rate, color=BLUE, marker="o", label="measured")
        axes.set_ylim(0, rate.max() * 1.25)
        axes.set_ylabel("output tokens/s, all users")
        _users_axis(axes, users)
        axes.legend(loc="lower right")
    return figure


def latency(runs: Sequence[Run]) -> Figure:
    """TTFT and ITL percentiles against the number of users."""
    rows = measure.table(runs).sort_values("users")
    users = rows["users"].to_numpy()
    growth = rows["ttft_p95_ms"].iloc[-1] / rows["ttft_p95_ms"].iloc[0]
    title = (
        f"From {users[0]} to {users[-1]} users the wait for the first token (p95) "
        f"grows {growth:.0f}-fold"
    )
    with rc_context(STYLE):
        figure, left = _figure(title, runs[0].title, columns=2)
        left, right = figure.axes
        styles = {50: (BLUE, "-"), 95: (ORANGE, "--"), 99: (RED, ":")}
        for axes, name, long in (
            (left, "ttft", "time to first token"),
            (right, "itl", "gap between tokens"),
        ):
            for rank, (color, line) in styles.items():
                values = rows[f"{name}_p{rank}_ms"]
                axes.plot(users, values, color=color, linestyle=line, marker="o", label=f"p{rank}")
            axes.set_ylim(bottom=0)
            axes.set_ylabel(f"{long} ({name.upper()}), ms")
            _users_axis(axes, users)
        left.legend()
    return figure


def _figure(title: str, measured: str, columns: int = 1) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots(1, columns)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    first = axes if columns == 1 else axes[0]
    first.set_title(measured)
    return figure, first


def _users_axis(axes: Axes, users: np.ndarray) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xticks(users)
    axes.minorticks_off()
    axes.set_xlabel("concurrent users")


def _knee(users: np.ndarray, rate: np.ndarray) -> str:
    """Return from how many users on the rate is within 5 % of its best, in words."""
    count = users[np.argmax(rate >= 0.95 * rate.max())]
    return f"{count} user{'s' if count > 1 else ''}"
