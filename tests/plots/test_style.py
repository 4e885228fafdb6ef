"""What all figures have in common: how they show themselves, and that they leave no trace."""

import matplotlib
import pytest

from helpers import measure
from helpers.plots import style


@style.styled
def drawn(title="One costs $1, two cost $2_"):
    figure, (axes,) = style.picture(title, "measured at $3 and $4_")
    found = [measure.Interval(value=2, low=1, high=4), measure.Interval(value=3, low=3, high=3)]
    style.bars(axes, ["a", "b"], found, ["2 ms", "3 ms"])
    return figure


def test_it_shows_itself_with_alternative_text():
    """Without it a notebook prints `<Figure size ...>` instead of the figure."""
    figure = drawn()
    data, metadata = figure._repr_mimebundle_(include=None, exclude=None)
    assert data["image/png"].startswith(b"\x89PNG") and len(data["image/png"]) < 120_000
    assert metadata["image/png"]["alt"] == data["text/plain"] == figure.get_suptitle()


def test_the_style_holds_for_the_figure_and_for_nothing_else():
    """A reader's own figures keep their style; ours are white on a dark page as well."""
    before = dict(matplotlib.rcParams)
    figure = drawn()
    assert dict(matplotlib.rcParams) == before
    assert figure.get_facecolor() == (1, 1, 1, 1) and figure.dpi == 110
    assert not figure.axes[0].spines["top"].get_visible()


def test_intervals_end_in_their_values():
    """The text stands behind the end of the interval, not in it."""
    (axes,) = drawn().axes
    assert [bar.get_width() for bar in axes.patches] == [2, 3]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    texts = [(text.get_text(), text.xy[0]) for text in axes.texts]
    assert texts == [
        (" 2 ms", 4),
        (" 3 ms", 3),
    ]


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 3), (2, 1)])
def test_axes_come_row_by_row(rows, columns):
    """Rows share the time axis."""
    figure, axes = style.picture("t", "m", rows=rows, columns=columns)
    assert axes == figure.axes and len(axes) == rows * columns
    assert (rows > 1) == axes[0].get_shared_x_axes().joined(axes[0], axes[-1]) or len(axes) == 1
