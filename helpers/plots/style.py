"""The style of every figure: its colours, how it begins, and the bars that several share."""

import io
from collections.abc import Sequence

from matplotlib import rc_context, rc_params_from_file
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from helpers.measure import Interval
from helpers.settings import ASSETS

# Okabe and Ito's palette: told apart with every kind of colour vision.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
GREY, PALE = "#6e7781", "#d0d7de"
STYLE = rc_params_from_file(ASSETS / "figures.mplstyle", use_default_template=False)
#: Decorator of a function that draws: the style holds while it runs, and nowhere else.
styled = rc_context(STYLE)


class Picture(Figure):
    """A figure that appears as PNG when it is a cell's last line, whatever backend is active.

    Its title, the finding, is the alternative text for those who cannot see it.
    """

    def _repr_mimebundle_(self, **_: object) -> tuple[dict, dict]:
        # A bare Figure shows itself only after pyplot has made one; ours never go through pyplot.
        page, small = io.BytesIO(), io.BytesIO()
        self.savefig(page, format="png")
        # So few colours are enough for lines and letters, and keep a notebook small.
        few = Image.open(page).convert("RGB").quantize(64)
        few.save(small, format="png", optimize=True)
        text = self.get_suptitle()
        return {"image/png": small.getvalue(), "text/plain": text}, {"image/png": {"alt": text}}


@styled
def picture(
    title: str, measured: str, *, rows: int = 1, columns: int = 1, height: float = 4
) -> tuple[Picture, list[Axes]]:
    """A figure with its title, what was measured where, and a grid of empty axes.

    Args:
        title: the finding.
        measured: what the numbers come from; stands over the first axes.
        rows: of axes; they share their x axis.
        columns: of axes.
        height: of the figure, inches.

    Returns:
        The figure and its axes, row by row.
    """
    figure = Picture(figsize=(8, height), layout="constrained")
    axes = list(figure.subplots(rows, columns, sharex=rows > 1, squeeze=False).flat)
    # No formulas: two prices in a title are none.
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", parse_math=False)
    axes[0].set_title(measured, parse_math=False)
    return figure, axes


def bars(
    axes: Axes, labels: Sequence[str], values: Sequence[float | Interval], texts: Sequence[str]
) -> None:
    """Draw horizontal bars, the first on top.

    Args:
        axes: where.
        labels: what each bar is.
        values: how long each is; a measure with its interval gets whiskers.
        texts: what to write at the end of each.
    """
    for row, value in enumerate(values):
        one = value if isinstance(value, Interval) else Interval(value=value, low=value, high=value)
        axes.barh(row, one.value, color=BLUE, height=0.6)
        if one.low < one.high:
            axes.plot((one.low, one.high), (row, row), "|-", color="black", markersize=6)
        axes.annotate(f" {texts[row]}", (one.high, row), va="center")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
