"""One line that says what is going on, updated in place: in a notebook, a terminal or a log."""

import shutil
import sys
import time
from collections.abc import Callable


class Progress:
    """Call it with a line whenever there is something to show.

    A notebook keeps only the last line in its output, a terminal overwrites the line, and a log
    file gets a new line only when the text changes. The seconds since the start stand in front.

    Args:
        keep: keep every different line, also in a notebook.
        shown: show anything at all.

    >>> with Progress() as say:
    ...     say("loading")  # doctest: +ELLIPSIS
       0 s  loading
    """

    def __init__(self, keep: bool = False, shown: bool = True) -> None:
        self._began, self._last, self._shown = time.monotonic(), "", shown
        self._notebook = shown and not keep and "ipykernel.kernelapp" in sys.modules
        self._terminal = shown and not keep and not self._notebook and sys.stdout.isatty()
        self._place = str(time.monotonic_ns())  # of the line, among a notebook's outputs
        self.updates = self._terminal or self._notebook  # a line is replaced by the next one

    def __call__(self, line: str) -> None:
        """Show a line (its first line, if there are several)."""
        line = line.strip().partition("\n")[0]
        text = f"{time.monotonic() - self._began:4.0f} s  {line}"
        if self._notebook:
            from IPython.display import display

            display({"text/plain": text}, raw=True, display_id=self._place, update=bool(self._last))
        elif self._terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{text[:width]}", end="", flush=True)
        elif self._shown and line != self._last:
            print(text, flush=True)
        self._last = line

    def close(self) -> None:
        """End the line: it stays, and what is shown next comes below it."""
        if self._terminal and self._last:
            print()
        self._last, self._place = "", str(time.monotonic_ns())

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fact(say: Callable[[str], None], line: str) -> None:
    """Show a line that the next one does not replace, where ``say`` is a ``Progress``."""
    say(line)
    if isinstance(say, Progress):
        say.close()
