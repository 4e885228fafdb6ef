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
        self._began = time.monotonic()
        self._last = ""
        self._keep = keep
        self._shown = shown
        self._display = None if keep or not shown else _notebook_display()
        self._open_line = False

    @property
    def updates(self) -> bool:
        """Is a line replaced by the next one (else each one stays)?"""
        return self._display is not None or (sys.stdout.isatty() and not self._keep)

    def __call__(self, line: str) -> None:
        """Show a line (its first line, if there are several)."""
        if not self._shown:
            return
        line = line.strip().partition("\n")[0]
        text = f"{time.monotonic() - self._began:4.0f} s  {line}"
        if self._display is not None:
            self._display.update({"text/plain": text}, raw=True)
        elif self.updates:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{text[:width]}", end="", flush=True)
            self._open_line = True
        elif line != self._last:
            print(text, flush=True)
        self._last = line

    def close(self) -> None:
        """End the line."""
        if self._open_line:
            print()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _notebook_display() -> Any:
    """A display that can be updated, when a notebook's kernel runs us; else None."""
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display

    return display({"text/plain": ""}, raw=True, display_id=True)
