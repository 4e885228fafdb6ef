"""One call executed: in time, whatever it does, its result as text that may be sent."""

import asyncio
import contextlib
import contextvars
import dataclasses
import inspect
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from helpers.errors import CourseError


@dataclass(frozen=True)
class Outcome:
    """What came of a call.

    Args:
        text: for the model.
        problem: for the reader; empty when all went well.
        ran: whether the function was called at all.
    """

    text: str
    problem: str = ""
    ran: bool = True


def failed(problem: str, *, ran: bool = True, **details) -> Outcome:
    """Return the outcome of a call that failed, or did not even run."""
    told = json.dumps({"error": problem, **details}, ensure_ascii=False, default=str)
    return Outcome(text=_sendable(told), problem=_line(problem, details.get("details")), ran=ran)


async def execute(
    function: Callable, arguments: dict[str, Any], timeout_s: float, limit: int
) -> Outcome:
    """Run a function, plain ones in a thread of their own, and return what it gave as text.

    The model is told the text of a plain ``ValueError`` or a ``CourseError``, which a tool raises
    to be understood; of any other exception only the name, because its text may hold what is
    nobody's business. The reader gets both.

    Args:
        function: plain or ``async``.
        arguments: its keyword arguments.
        timeout_s: for the call; a plain function's thread is left behind when it is over.
        limit: longest text, in characters.
    """
    task = asyncio.ensure_future(_called(function, arguments, limit))
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
    finally:
        task.cancel()  # nothing happens to one that has ended
    if not done:
        return failed(f"no result within {timeout_s:g} s")
    return failed("the tool cancelled itself") if task.cancelled() else task.result()


async def _called(function: Callable, arguments: dict[str, Any], limit: int) -> Outcome:
    if inspect.iscoroutinefunction(function):
        value, error = await _awaited(lambda: function(**arguments))
    else:
        value, error = await _in_thread(lambda: function(**arguments))
        if error is None and inspect.isawaitable(value):
            value, error = await _awaited(lambda: value)
    if error is None:  # writing it down may take for ever as well, and raise anything
        text, error = await _in_thread(lambda: as_text(value, limit))
        if error is None:
            return Outcome(text=text)
        return failed(f"its result cannot be written as text ({type(error).__name__})")
    said, silent = await _in_thread(lambda: str(error))
    kind, text = type(error).__name__, "no message" if silent else _line(said)
    # Not what merely inherits from it: pydantic's and requests' errors quote their input.
    if type(error) is ValueError or isinstance(error, CourseError):
        return failed(f"{kind}: {text}"[:300])
    told = failed(f"the tool failed ({kind})")
    return Outcome(text=told.text, problem=f"{kind}: {text}"[:300])


def as_text(value: Any, limit: int) -> str:
    """Return a value as text of limited length: a string itself, anything else as JSON.

    The JSON is written piece by piece and only as far as it is needed.

    >>> as_text({"a": {1}}, 100), as_text("x" * 999, 3)
    ('{"a": [1]}', 'xxx... (cut: 3 of 999 characters)')
    """
    if isinstance(value, str):
        text = _sendable(value)
        of = f" of {len(text)}"
    else:
        of = ""
        parts, length = [], 0
        for part in json.JSONEncoder(ensure_ascii=False, default=_plain).iterencode(value):
            parts.append(part)
            length += len(part)
            if length > limit:
                break
        text = "".join(parts)
    if len(text) > limit:
        text = f"{text[:limit]}... (cut: {limit}{of} characters)"
    return _sendable(text)


def _plain(value: Any) -> Any:
    """Return what JSON has no form for in one that it has; never walk an endless iterator."""
    if isinstance(value, Iterator | range):
        return str(value)
    # One level only: what is inside comes here again, and an iterator may be among it.
    if isinstance(value, BaseModel):
        return value.model_dump(warnings=False)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {part.name: getattr(value, part.name) for part in dataclasses.fields(value)}
    if isinstance(value, set | frozenset | deque):
        return list(value)
    return to_jsonable_python(value, serialize_unknown=True)


async def _awaited(start: Callable) -> tuple[Any, BaseException | None]:
    try:
        return await start(), None
    except BaseException as error:  # SystemExit, too, ends only the call
        return None, error


async def _in_thread(function: Callable) -> tuple[Any, BaseException | None]:
    # Not asyncio.to_thread: its threads are waited for at the end, a hanging one for ever.
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            found = context.run(function), None
        except BaseException as error:
            found = None, error
        with contextlib.suppress(RuntimeError):  # nobody waits any more
            loop.call_soon_threadsafe(lambda: future.done() or future.set_result(found))

    threading.Thread(target=work, daemon=True, name="tool").start()
    return await future


def _line(text: str, details: list[dict] | None = None) -> str:
    more = "; ".join(f"{one['argument']}: {one['problem']}" for one in details or ())
    return " ".join(f"{text}: {more}".split() if more else text.split())[:300]


def _sendable(text: str) -> str:
    """Half a surrogate pair would break the request that carries it."""
    return str.encode(text, "utf-8", "replace").decode()
