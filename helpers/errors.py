"""The one exception of the course: what went wrong, and what to do next."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CourseError(Exception):
    """An expected failure, told in a sentence, with the next step.

    Args:
        what: what went wrong, one sentence, without a full stop at the end.
        hint: what to do next; empty when there is nothing the reader can do.

    Raise it ``from None`` or ``from error`` at the border where foreign code failed.
    """

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}\ntry: {self.hint}" if self.hint else self.what

    def _render_traceback_(self) -> list[str]:
        # IPython calls this hook: a notebook shows two lines instead of sixty.
        return f"{type(self).__name__}: {self}".splitlines()


@contextmanager
def writing(folder: Path, setting: str) -> Iterator[None]:
    """Turn what the disk refuses into a sentence.

    Args:
        folder: where we write.
        setting: the variable that names another place.

    Raises:
        CourseError: the folder cannot be written to, or the disk is full.
    """
    try:
        yield
    except OSError as error:
        hint = f"free some space, or set {setting} to a path that you can write to"
        raise CourseError(f"cannot write to {folder}: {error.strerror or error}", hint) from None


def above_zero(**values: float | None) -> None:
    """Refuse numbers that are not above 0; ``None`` is none.

    Raises:
        CourseError: one is 0, negative, endless or not a number.
    """
    for name, value in values.items():
        if value is not None and not 0 < value < float("inf"):
            raise CourseError(f"{name} is {value}", f"{name} must be above 0, and finite")


class Stopped(CourseError):
    """The reader stopped something, by Ctrl-C or the notebook's stop button."""
