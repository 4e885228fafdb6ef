"""A function becomes a definition, and what a model writes becomes arguments, or a refusal."""

import enum
import json
import threading
from datetime import date
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from helpers import tools
from helpers.errors import CourseError


class Size(enum.Enum):
    """T-shirts."""

    SMALL = "s"
    LARGE = "l"


class Item(BaseModel):
    """Part of an order."""

    name: str
    quantity: int = Field(1, ge=1)


@tools.tool
def order(
    items: list[Item],
    size: Size = Size.LARGE,
    unit: Literal["kg", "lb"] = "kg",
    note: str | None = None,
    schema: str = "",
    copy: int = 1,
) -> str:
    """Order things.

    They arrive soon.

    Args:
        items: what
            to order.
        note: for the driver.
    """
    return "ok"


def test_a_definition_says_what_the_function_says():
    """Types, enums, nested models, defaults and descriptions reach the model."""
    function = order.definition()["function"]
    parameters = function["parameters"]
    told = parameters["properties"]
    assert function["name"] == "order"
    assert function["description"] == "Order things. They arrive soon."
    assert parameters["required"] == ["items"] and parameters["additionalProperties"] is False
    assert told["items"]["description"] == "what to order."
    assert told["unit"] == {"enum": ["kg", "lb"], "type": "string", "default": "kg"}
    assert told["note"]["description"] == "for the driver."
    item, size = (parameters["$defs"][name] for name in ("Item", "Size"))
    assert item["properties"]["quantity"] == {"type": "integer", "minimum": 1, "default": 1}
    assert item["required"] == ["name"] and size["enum"] == ["s", "l"]
    assert told["size"]["default"] == "l"


def test_the_strict_form_is_the_one_that_openai_asks_for():
    """Every property required, nothing else allowed, what may be left out may be null instead."""
    function = order.definition(strict=True)["function"]
    assert function["strict"] is True and function["description"].startswith("Order things.")
    parameters = function["parameters"]
    for schema in (parameters, parameters["$defs"]["Item"]):
        assert schema["additionalProperties"] is False
        assert schema["required"] == list(schema["properties"])
    assert {"type": "null"} in parameters["properties"]["unit"]["anyOf"]
    assert "anyOf" not in parameters["properties"]["items"]


def test_arguments_become_python_values():
    """The function gets models and enums; what is left out or null has its default."""
    text = '{"items": [{"name": "tea", "quantity": "2"}], "size": "s", "schema": "x", "copy": 3}'
    assert order.arguments(text) == {
        "items": [Item(name="tea", quantity=2)], "size": Size.SMALL, "unit": "kg", "note": None,
        "schema": "x", "copy": 3,
    }  # fmt: skip
    assert order(**order.arguments('{"items": [], "unit": null}')) == "ok"
    assert order.arguments('{"items": [], "unit": null}')["unit"] == "kg"


def test_arguments_may_have_any_name():
    """Also the names that the code around uses for its own."""

    @tools.tool
    def odd(function: int, self: int, cls: int, arguments: int, title: int, default: int) -> list:
        return [function, self, cls, arguments, title, default]

    text = '{"function": 1, "self": 2, "cls": 3, "arguments": 4, "title": 5, "default": 6}'
    assert odd.function(**odd.arguments(text)) == [1, 2, 3, 4, 5, 6]
    assert set(odd.schema()["properties"]) == set(json.loads(text))


def test_a_field_may_stand_as_a_default():
    """Readers write it where pydantic's models have it; its limits must hold there as well."""

    @tools.tool
    def pay(amount: int = Field(ge=1), copies: int = Field(2, le=9)) -> str:
        return f"{amount} {copies}"

    @tools.tool
    def fine(amount: Annotated[int, Field(ge=1)] = 5) -> str:
        return f"{amount}"

    assert pay(**pay.arguments('{"amount": 3}')) == "3 2" and fine(**fine.arguments("")) == "5"
    for one, text in ((pay, "{}"), (pay, '{"amount": 0}'), (fine, '{"amount": 0}')):
        with pytest.raises(tools.BadArguments):
            one.arguments(text)


def test_strict_models_take_json():
    """In JSON a date is a text; pydantic's strict mode knows that if it is told."""

    class Day(BaseModel):
        model_config = ConfigDict(strict=True)
        when: date

    @tools.tool
    def plan(day: Day) -> str:
        return ""

    assert plan.arguments('{"day": {"when": "2026-11-24"}}')["day"].when == date(2026, 11, 24)


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ('{"items": [], "unit": "stone"}', "unit", "'kg' or 'lb'"),
        ('{"items": [{"name": "x", "quantity": 0}]}', "items.0.quantity", "greater than"),
        ('{"items": [], "colour": "red"}', "colour", "not permitted"),
        ("", "items", "required"),
        ('{"items": [', "(all)", "JSON"),
        ("[]", "(all)", "object"),
        ("[" * 9999, "(all)", "JSON"),
    ],
)
def test_a_refusal_says_where_and_what(text, where, what):
    """The model reads it, and can do better the next time."""
    with pytest.raises(tools.BadArguments) as raised:
        order.arguments(text)
    place, _, problem = str(raised.value).partition("; ")[0].partition(": ")
    assert place == where and what in problem


@given(st.text() | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["items", "note"]), inner),
    max_leaves=9).map(json.dumps))  # fmt: skip
def test_whatever_a_model_writes_is_arguments_or_a_refusal(text):
    """No other exception, and not many words."""
    try:
        found = order.arguments(text)
    except tools.BadArguments as error:
        assert str(error) and len(str(error)) < 1500
    else:
        assert all(type(one) is Item for one in found["items"])


@pytest.mark.parametrize("kind", [ValueError, KeyError, RuntimeError])
def test_a_validator_of_the_tools_own_may_fail(kind):
    """What checks an argument is the reader's code as well; its secrets stay with the reader."""

    def check(value: str) -> str:
        raise kind("hunter2" if kind is not ValueError else "wrong town")

    @tools.tool
    def visit(town: Annotated[str, AfterValidator(check)]) -> str:
        return town

    with pytest.raises(tools.BadArguments) as raised:
        visit.arguments('{"town": "x"}')
    assert "hunter2" not in str(raised.value)
    assert ("wrong town" in str(raised.value)) == (kind is ValueError)


@pytest.mark.parametrize(
    "source", ["lambda **more: 1", "lambda *more: 1", "lambda x, /: 1", "lambda x: 1"]
)
def test_a_function_that_no_model_could_call_is_refused(source):
    """With a sentence that says what to change, when the tool is made and not when it is called."""
    function = eval(source)
    function.__name__ = "it"
    with pytest.raises(CourseError, match="it cannot be a tool: a model cannot fill"):
        tools.tool(function)


@pytest.mark.parametrize(
    "annotation",
    ["a number", "datetime.nothing", type(threading.Lock()), Annotated[str, Field(pattern="(")]],
)
def test_an_annotation_that_cannot_be_used_is_a_sentence(annotation):
    """Whatever is wrong with it."""

    def it(x) -> str:
        return ""

    it.__annotations__["x"] = annotation
    with pytest.raises(CourseError, match="it cannot be a tool: "):
        tools.tool(it)


@pytest.mark.parametrize(
    "path",
    ["../secret", "a/../../secret", "/etc/passwd", "link/secret", "~/x/../../..", "\0"],
)
def test_a_path_cannot_leave_its_folder(path, tmp_path):
    """Dots, absolute paths and symbolic links are resolved before they are compared."""
    notes = tmp_path / "notes"
    notes.mkdir()
    (tmp_path / "secret").write_text("top secret")
    (notes / "link").symlink_to(tmp_path)
    (notes / "fine.txt").write_text("hello")

    @tools.tool
    def read_note(name: tools.inside(notes)) -> str:
        return name.read_text()

    assert read_note.schema()["properties"]["name"] == {"type": "string"}
    with pytest.raises(tools.BadArguments):
        read_note.arguments(json.dumps({"name": path}))
    assert read_note(**read_note.arguments('{"name": "fine.txt"}')) == "hello"
