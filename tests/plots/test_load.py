"""Figures carry units, name what was measured, and show the numbers they were given."""

from dataclasses import replace

import pytest
from support.made_runs import broken, closed_loop, queue

from helpers import measure, plots
from helpers.errors import CourseError
from helpers.records import Run


@pytest.fixture
def runs():
    """Three even runs."""
    return [closed_loop(users=users) for users in (1, 2, 4)]


@pytest.mark.parametrize("draw", [plots.throughput, plots.latency])
def test_units_and_source(runs, draw, tmp_path):
    """Every axis has a unit or says what it counts, and the title names the machine."""
    figure = draw(runs)
    assert figure.axes[0].get_title(loc="left") == runs[0].title
    for axes in figure.axes:
        assert axes.get_xlabel() and ("ms" in axes.get_ylabel() or "/s" in axes.get_ylabel())
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size < 120_000


def test_every_other_figure_draws(runs, tmp_path):
    """Each has a finding as its title, names what was measured, and has units on its axes."""
    runs[0].samples = [{"t_s": t, "running": 1.0, "waiting": 0.0, "kv_cache_usage": 0.2}
                       for t in range(4)]  # fmt: skip
    figures = [
        plots.capacity(runs, measure.Objective()),
        plots.request(runs[0]),
        plots.timeline(runs[0]),
        plots.server_view(runs[0]),
    ]
    for number, figure in enumerate(figures):
        assert figure.get_suptitle() and runs[0].title in figure.axes[0].get_title(loc="left")
        labels = " ".join(a.get_xlabel() + a.get_ylabel() for a in figure.axes)
        assert any(unit in labels for unit in ("ms", ", s", "/s")), labels
        figure.savefig(tmp_path / f"{number}.png")


def test_throughput_shows_the_table(runs):
    """The plotted line is the table's column."""
    axes = plots.throughput(runs).axes[0]
    ideal, line, bend = axes.get_lines()
    table = measure.table(runs)["output_tokens_per_s"]
    assert list(line.get_ydata()) == pytest.approx(list(table))
    one = line.get_ydata()[0]
    assert list(ideal.get_ydata()) == pytest.approx([n * one for n in ideal.get_xdata()])
    assert max(ideal.get_ydata()) <= axes.get_ylim()[1] * (1 + 1e-9), "it leaves the frame"
    assert bend.get_xdata()[0] == pytest.approx(measure.saturation(runs).users)


def test_an_undecided_load_is_hollow(runs):
    """A reader sees which of the points may lie on either side of the promise."""
    short = closed_loop(users=4, each=1)
    short.header["arrivals"]["users"] = 8
    (axes,) = plots.capacity([*runs, short], measure.Objective(tpot_ms=None)).axes
    (hollow,) = [line for line in axes.get_lines() if line.get_label() == "undecided"]
    assert list(hollow.get_xdata()) == [8]


def test_pictures_of_failure(tmp_path):
    """A load at which every answer was lost still has its place in the picture."""
    runs = [closed_loop(users=1), broken(closed_loop(users=2))]
    for number, objective in enumerate(
        (
            measure.Objective(ttft_ms=2000, tpot_ms=None),
            measure.Objective(),
            measure.Objective(e2e_ms=900, percentile=99.5),
        )
    ):
        plots.capacity(runs, objective).savefig(tmp_path / f"{number}.png")
    assert "endlessly" in plots.latency(runs).get_suptitle()
    with pytest.raises(CourseError, match="no request"):
        plots.request(runs[1])
    tools = closed_loop()
    called = [replace(record, finish="tool_calls") for record in tools.records]
    plots.capacity([Run(tools.header, called, ends=tools.ends)], measure.Objective())


def test_pictures_of_rates(tmp_path):
    """A search by rate gives the same pictures, with the rate on the axis."""
    runs = [queue(rate, seconds=5) for rate in (10, 20, 30)]
    for figure in (plots.throughput(runs), plots.latency(runs)):
        figure.savefig(tmp_path / "rates.png")
        assert figure.axes[0].get_xlabel() == "requests/s"
    assert "at 10 requests/s" in plots.throughput(runs).get_suptitle()
