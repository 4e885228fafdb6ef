"""The one exception of the course: what went wrong, and what to do next."""


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


class Stopped(CourseError):
    """The reader stopped something, by Ctrl-C or the notebook's stop button."""
