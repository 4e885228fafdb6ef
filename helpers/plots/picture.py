"""A matplotlib figure that a notebook shows by itself, with alternative text."""

import io

from matplotlib.figure import Figure
from PIL import Image

COLOURS = 64


class Picture(Figure):
    """A figure; as a cell's last line it appears as PNG, whatever backend is active.

    ``alt`` says in words what is to be seen, for those who cannot see it and for the checks; by
    default the figure's title.
    """

    alt: str = ""

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        # A bare Figure shows itself only after pyplot has made one; ours never go through pyplot.
        page = io.BytesIO()
        self.savefig(page, format="png")
        # Few colours are enough for lines and letters, and keep a notebook small.
        few = Image.open(page).convert("RGB").quantize(COLOURS)
        page = io.BytesIO()
        few.save(page, format="png", optimize=True)
        text = self.alt or self.get_suptitle()
        return {"image/png": page.getvalue(), "text/plain": text}, {"image/png": {"alt": text}}
