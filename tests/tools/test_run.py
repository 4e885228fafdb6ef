"""A function executed: whatever it gives or raises, and however long it takes."""

import asyncio
import collections
import dataclasses
import datetime
import decimal
import itertools
import json
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from helpers.errors import CourseError
from helpers.tools.run import as_text, execute


class Item(BaseModel):
    name: str
    value: Any = None


@dataclasses.dataclass
class Box:
    value: Any = None


def cyclic():
    found = {"a": []}
    found["a"].append(found)
    return found


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("fine", "fine"),
        (None, "null"),
        ({"a": [1, 2.5, True]}, '{"a": [1, 2.5, true]}'),
        ("Malmö", "Malmö"),
        (["Malmö"], '["Malmö"]'),
        ({1}, "[1]"),
        (Item(name="tea", value=datetime.date(2026, 11, 24)),
         '{"name": "tea", "value": "2026-11-24"}'),
        ([Box({2})], '[{"value": [2]}]'),
        ({"when": datetime.date(2026, 11, 24)}, '{"when": "2026-11-24"}'),
        (decimal.Decimal("1.50"), '"1.50"'),
        (b"\xff", r'''"b'\\xff'"'''),
        (itertools.count(), '"count(0)"'),
        ({"endless": itertools.count()}, '{"endless": "count(0)"}'),
        (collections.deque([1]), '"deque([1])"'),
        ("\ud800", "?"),
        ("x" * 5000, "x" * 4000 + "... (cut: 4000 of 5000 characters)"),
        (list(range(100_000)), json.dumps(list(range(100_000)))[:4000]
         + "... (cut: 4000 of 688890 characters)"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
async def test_a_result_becomes_text(value, text):
    """JSON where it has a form for it, words where not, and never without end."""

    def give() -> object:
        return value

    found = await execute(give, {}, timeout_s=5)
    assert (found.text, found.problem) == (text, "")


@pytest.mark.parametrize("value", [cyclic(), {("a", 1): 2}], ids=["cyclic", "key"])
async def test_a_result_that_cannot_be_written_is_a_problem(value):
    """Of this call; the conversation goes on."""
    found = await execute(lambda: value, {}, timeout_s=5)
    assert "error" in json.loads(found.text) and found.problem


ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON = st.recursive(
    ATOMS, lambda one: st.lists(one) | st.dictionaries(st.text(), one), max_leaves=9
)


@given(JSON)
def test_a_short_result_arrives_whole(value):
    """What JSON can carry is carried unchanged."""
    text = as_text(value)
    assert text == value or json.dumps(json.loads(text)) == json.dumps(value)


class Form(BaseModel):
    age: int


@pytest.mark.parametrize("how", ["plain", "async"])
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("the shop is closed on Sundays"), "ValueError: the shop is closed on Sundays"),
        (CourseError("no key hunter2", "try"), "CourseError: no key hunter2\ntry: try"),
        (
            ConnectionError("postgres://admin:hunter2@db refused"),
            "the tool failed (ConnectionError)",
        ),
        (KeyError("hunter2"), "the tool failed (KeyError)"),
        (TimeoutError("hunter2"), "the tool failed (TimeoutError)"),
        (SystemExit("hunter2"), "the tool failed (SystemExit)"),
        (lambda: Form(age="hunter2"), "the tool failed (ValidationError)"),  # a ValueError, too
    ],
    ids=lambda value: type(value).__name__,
)
async def test_an_error_is_told_without_its_secrets(error, told, how):
    """The model gets what was meant for it, the reader all, and nobody a traceback."""

    def plain() -> str:
        if callable(error):
            error()
        raise error

    async def later() -> str:
        return plain()

    found = await execute(plain if how == "plain" else later, {}, timeout_s=5)
    assert json.loads(found.text) == {"error": told}
    assert "hunter2" in found.problem or "Sundays" in found.problem
    assert "\n" not in found.problem and "Traceback" not in found.text


async def test_a_stopped_iterator_is_an_error_as_any_other():
    """``next`` of nothing is a common slip, and must not hang the call."""
    found = await execute(lambda: next(iter(())), {}, timeout_s=5)
    assert "StopIteration" in found.problem


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_function_that_hangs_is_left_behind(kind):
    """After its time the conversation goes on, and meanwhile others do."""
    release = threading.Event()

    def plain() -> None:
        release.wait(20)

    async def later() -> None:
        await asyncio.sleep(20)

    began = time.monotonic()
    hanging = execute(plain if kind == "plain" else later, {}, timeout_s=0.2)
    found, quick = await asyncio.gather(hanging, execute(lambda: 1, {}, timeout_s=5))
    release.set()
    assert "0.2 s" in found.problem and quick.text == "1"
    assert time.monotonic() - began < 3


async def test_a_wrapped_async_function_is_awaited():
    """Decorators often make a plain function of it."""

    async def later(number: int) -> int:
        return number

    found = await execute(lambda **given: later(**given), {"number": 4}, timeout_s=5)
    assert found.text == "4"


async def test_a_tool_may_print_and_start_loops_of_its_own(capsys):
    """Tools are ordinary code: they print, and some call ``asyncio.run``."""

    def busy() -> int:
        print("working")
        return asyncio.run(asyncio.sleep(0, 41)) + 1

    found = await execute(busy, {}, timeout_s=5)
    assert found.text == "42" and "working" in capsys.readouterr().out
