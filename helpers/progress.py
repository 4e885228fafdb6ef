"""One line that says what is going on, updated in place: in a notebook, a terminal or a log."""

import shutil
import sys
import time
from typing import Any


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
        self._terminal = shown and not keep and sys.stdout.isatty()
        self._display: Any = None
        if shown and not keep and "ipykernel.kernelapp" in sys.modules:  # we run in a notebook
            from IPython.display import display

            self._display = display({"text/plain": ""}, raw=True, display_id=True)

    @property
    def updates(self) -> bool:
        """Is a line replaced by the next one (else each one stays)?"""
        return bool(self._terminal or self._display)

    def __call__(self, line: str) -> None:
        """Show a line (its first line, if there are several)."""
        line = line.strip().partition("\n")[0]
        text = f"{time.monotonic() - self._began:4.0f} s  {line}"
        if self._display:
            self._display.update({"text/plain": text}, raw=True)
        elif self._terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{text[:width]}", end="", flush=True)
        elif self._shown and line != self._last:
            print(text, flush=True)
        self._last = line

    def close(self) -> None:
        """End the line."""
        if self._terminal and self._last:
            print()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
