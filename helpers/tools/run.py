"""One call executed: in time, whatever it does, its result as text that may be sent."""

import asyncio
import contextvars
import dataclasses
import inspect
import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from helpers.errors import CourseError

LONGEST = 4000  # characters of a result that the model is shown


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a call.

    Args:
        text: for the model.
        problem: for the reader; empty when all went well.
        late: it was not over in time, and may still be done.
    """

    text: str
    problem: str = ""
    late: bool = False


def failed(problem: str, *, told: str = "", **details: Any) -> Outcome:
    """Return the outcome of a call that failed, or did not even run.

    Args:
        problem: for the reader.
        told: for the model, where that is something else.
        **details: more for the model.
    """
    text = as_text({"error": told or problem, **details})
    return Outcome(text=text, problem=" ".join(problem.split()))


async def execute(function: Callable, arguments: dict[str, Any], timeout_s: float) -> Outcome:
    """Run a function, plain ones in a thread of their own, and return what it gave as text.

    The model is told the text of a plain ``ValueError`` or a ``CourseError``, which a tool raises
    to be understood; of any other exception only the name, because its text may hold what is
    nobody's business. The reader gets both.

    Args:
        function: plain or ``async``.
        arguments: its keyword arguments.
        timeout_s: for the call; a plain function's thread is left behind when it is over.
    """
    try:
        async with asyncio.timeout(timeout_s) as deadline:
            value = await _in_thread(function, arguments)
            if inspect.isawaitable(value):  # what an ``async`` function returns when it is called
                value = await value
            return Outcome(text=as_text(value))
    except (Exception, SystemExit) as error:
        if deadline.expired():
            return dataclasses.replace(failed(f"no result within {timeout_s:g} s"), late=True)
        kind = type(error).__name__
        # Not what merely inherits from it: pydantic's and requests' errors quote their input.
        meant = type(error) is ValueError or isinstance(error, CourseError)
        return failed(f"{kind}: {error}"[:300], told="" if meant else f"the tool failed ({kind})")


def as_text(value: Any) -> str:
    """Return a value as text of limited length: a string itself, anything else as JSON.

    >>> as_text({"a": {1}}), as_text("x" * 5000)[-35:]
    ('{"a": [1]}', 'x... (cut: 4000 of 5000 characters)')
    """
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_json)
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}... (cut: {LONGEST} of {len(text)} characters)"
    # Half a surrogate pair, as in some file names, would break the request that carries it.
    return text.encode("utf-8", "replace").decode()


def _json(value: Any) -> Any:
    """Return what JSON has no form for in one that it has; never walk an endless iterator."""
    if isinstance(value, BaseModel) or dataclasses.is_dataclass(value):
        return to_jsonable_python(value, serialize_unknown=True)
    return list(value) if isinstance(value, set | frozenset) else str(value)


async def _in_thread(function: Callable, arguments: dict[str, Any]) -> Any:
    """Not ``asyncio.to_thread``: its threads are waited for at the end, a hanging one for ever."""
    future: Future = Future()
    future.set_running_or_notify_cancel()  # from here on a result that nobody awaits is dropped
    context = contextvars.copy_context()  # says to which cell's output a notebook prints

    def work() -> None:
        try:
            future.set_result((context.run(lambda: function(**arguments)), None))
        except BaseException as error:
            future.set_result((None, error))

    threading.Thread(target=work, daemon=True, name="tool").start()
    value, error = await asyncio.wrap_future(future)
    if error:
        raise error
    return value
