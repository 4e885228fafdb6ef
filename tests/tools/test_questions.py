"""The questions, and whether a wrong call can pass for a right one, or a right for a wrong one."""

import jsonschema
import pytest
import yaml
from support.asked import question
from support.scripted import call, message

from helpers import tools
from helpers.settings import ASSETS
from helpers.tools.questions import ARGUMENTS, judge, read


def verdict(wanted, *made, text="", finish="stop"):
    return judge(question(*wanted), message(*(call(*one) for one in made), text=text), finish)


@pytest.mark.parametrize(
    ("allowed", "given", "cause"),
    [
        ({"to": "Ann Lee"}, {"to": " ann-lee."}, "right"),
        ({"to": ["Lyon", "Lyons"]}, {"to": "lyons"}, "right"),
        ({"to": "Lyon"}, {"to": "Lille"}, ARGUMENTS),
        ({"to": "12"}, {"to": 12}, ARGUMENTS),
        ({"kg": 2}, {"kg": 2.0}, "right"),
        ({"kg": 0.5}, {"kg": 0.50}, "right"),
        ({"kg": 2}, {"kg": "2"}, ARGUMENTS),
        ({"kg": 1}, {"kg": True}, ARGUMENTS),
        ({"express": True}, {"express": 1}, ARGUMENTS),
        ({"express": True}, {}, ARGUMENTS),
        ({"express": True}, {"express": None}, ARGUMENTS),
        ({"to": ["x", None]}, {}, "right"),
        ({"to": "x"}, {"to": "x", "express": False}, "right"),  # the schema's default
        ({"to": "x"}, {"to": "x", "express": True}, ARGUMENTS),
        ({"to": "x"}, {"to": "x", "kg": None}, "right"),
        ({"to": "x"}, {"to": "x", "colour": "red"}, ARGUMENTS),
        ({"tags": [["a", "b"]]}, {"tags": ["A", "b"]}, "right"),
        ({"tags": [["a", "b"]]}, {"tags": ["b", "a"]}, ARGUMENTS),
        ({"tags": [["a", "b"]]}, {"tags": ["a"]}, ARGUMENTS),
        ({"tags": [["a", "b"]]}, {"tags": "a"}, ARGUMENTS),
        ({"box": {"w": [1, 2], "h": 3}}, {"box": {"h": 3, "w": 2}}, "right"),
        ({"box": {"w": 1, "h": [3, None]}}, {"box": {"w": 1}}, "right"),
        ({"box": {"w": 1}}, {"box": {"w": 1, "h": 3}}, ARGUMENTS),
        ({"box": {"w": 1}}, {"box": [1]}, ARGUMENTS),
        ({"tags": [[{"n": ["cup", "cups"]}]]}, {"tags": [{"n": "Cups"}]}, "right"),
    ],
)
def test_arguments_are_compared_by_type_and_meaning(allowed, given, cause):
    """Too strict scores a model for its punctuation, too lax for calls that would not run."""
    assert verdict([("ship", allowed)], ("ship", given)) == cause


X, Y = ("ship", {"to": "x"}), ("ship", {"to": "y"})


@pytest.mark.parametrize(
    ("wanted", "made", "cause"),
    [
        ([], [], "right"),
        ([], [X], "needless call"),
        ([X], [], "no call"),
        ([X, Y], [Y, X], "right"),
        ([X, Y], [X, X], ARGUMENTS),
        ([X, Y], [Y], "wrong number of calls"),
        ([X], [X, Y], "wrong number of calls"),
        ([X], [("cancel", {})], "wrong tool"),
        ([X], [("Ship", {"to": "x"})], "wrong tool"),
        ([X, ("cancel", {})], [("cancel", {}), X], "right"),
        ([X], [("ship", '{"to": "x"')], ARGUMENTS),
        ([X], [("ship", '["x"]')], ARGUMENTS),
        ([X], [("ship", "[" * 100_000)], ARGUMENTS),
        ([("cancel", {})], [("cancel", "")], "right"),
    ],
)
def test_calls_are_compared_without_order(wanted, made, cause):
    """Each way of being wrong has its name, because the picture of a model's faults is of these."""
    assert verdict(wanted, *made) == cause


def test_an_answer_cut_off_is_told_from_a_refusal():
    """One wants more ``max_tokens``, the other another model."""
    assert verdict([X], text="<tool_c", finish="length") == "cut off"


def first(allowed):
    """The first of the values allowed, all the way down."""
    if isinstance(allowed, dict):
        ways = {name: one if isinstance(one, list) else [one] for name, one in allowed.items()}
        given = {name: [one for one in some if one is not None] for name, some in ways.items()}
        return {name: first(some[0]) for name, some in given.items() if some}
    return [first(one) for one in allowed] if isinstance(allowed, list) else allowed


def test_the_own_questions_are_enough_and_can_be_answered():
    """Every expected call fits its tool's schema, and would be scored as right."""
    asked = read()
    offered = {tool["function"]["name"] for one in asked for tool in one.tools}
    assert len(asked) >= 60 and len(offered) >= 8
    assert {"no call", "ask back", "two calls", "nested", "units"} <= {one.kind for one in asked}
    assert len({one.text for one in asked}) == len(asked)
    for one in asked:
        schemas = {t["function"]["name"]: t["function"]["parameters"] for t in one.tools}
        made = [call(name, first(allowed)) for name, allowed in one.calls]
        for name, allowed in one.calls:
            jsonschema.validate(first(allowed), schemas[name])
        assert judge(one, message(*made)) == "right", one
        wrong = judge(one, message(*made, call("track_parcel")))
        assert wrong in ("needless call", "wrong number of calls")


def test_the_adapter_was_not_trained_on_these_tools():
    """A score on tools that were trained on would flatter."""
    families = yaml.safe_load((ASSETS / "tool_calling" / "families.yaml").read_text())["families"]
    trained = {name for family in families for name in family["names"]}
    assert not trained & {tool["function"]["name"] for one in read() for tool in one.tools}


def test_a_question_about_a_tool_without_arguments():
    """Such a tool has no ``parameters`` at all; one question must not end all others."""
    ping = {"type": "function", "function": {"name": "ping"}}
    asked = tools.Question(kind="k", messages=[], tools=[ping], calls=[("ping", {})])
    assert judge(asked, message(call("ping"))) == "right"


def test_a_default_may_be_written_out():
    """Of a tool made of a function, too."""

    @tools.tool
    def order(unit: str = "kg") -> str:
        return ""

    asked = tools.Question(kind="k", messages=[], tools=[order.definition()], calls=[("order", {})])
    assert judge(asked, message(call("order", {"unit": "kg"}))) == "right"
    assert judge(asked, message(call("order", {"unit": "lb"}))) == ARGUMENTS
