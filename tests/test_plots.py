"""Figures carry units, name what was measured, and show the numbers they were given."""

import pytest
from test_measure import closed_loop

from helpers import measure, plots


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


def test_throughput_shows_the_table(runs):
    """The plotted line is the table's column."""
    line = plots.throughput(runs).axes[0].get_lines()[-1]
    assert list(line.get_ydata()) == list(measure.table(runs)["output_tokens_per_s"])
