"""The evaluation: whether a wrong call can pass for a right one, or a right one for a wrong one."""

import asyncio
import json
import re

import jsonschema
import pytest
import yaml
from aiohttp import web
from support.asked import question
from support.scripted import Scripted, call, said, wants

from helpers import tools
from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.plots import tools as plots_tools
from helpers.settings import ASSETS
from helpers.tools.conversation import Call, Reply
from helpers.tools.questions import QUESTIONS, judge, read


def verdict(wanted, *made, text="", finish="stop"):
    made = [Call(name=n, arguments=a if isinstance(a, str) else json.dumps(a)) for n, a in made]
    return judge(question(*wanted), Reply(text=text, calls=tuple(made), finish=finish))


@pytest.mark.parametrize(
    ("allowed", "given", "cause"),
    [
        ({"to": "Ann Lee"}, {"to": " ann-lee."}, "right"),
        ({"to": ["Lyon", "Lyons"]}, {"to": "lyons"}, "right"),
        ({"to": "Lyon"}, {"to": "Lille"}, "wrong value"),
        ({"to": "12"}, {"to": 12}, "wrong value"),
        ({"kg": 2}, {"kg": 2.0}, "right"),
        ({"kg": 0.5}, {"kg": 0.50}, "right"),
        ({"kg": 2}, {"kg": "2"}, "wrong value"),
        ({"kg": 1}, {"kg": True}, "wrong value"),
        ({"express": True}, {"express": 1}, "wrong value"),
        ({"express": True}, {}, "argument left out"),
        ({"express": True}, {"express": None}, "argument left out"),
        ({"to": ["x", None]}, {}, "right"),
        ({"to": "x"}, {"to": "x", "express": False}, "right"),  # the schema's default
        ({"to": "x"}, {"to": "x", "express": True}, "argument too many"),
        ({"to": "x"}, {"to": "x", "kg": None}, "right"),
        ({"to": "x"}, {"to": "x", "colour": "red"}, "argument too many"),
        ({"tags": [["a", "b"]]}, {"tags": ["A", "b"]}, "right"),
        ({"tags": [["a", "b"]]}, {"tags": ["b", "a"]}, "wrong value"),
        ({"tags": [["a", "b"]]}, {"tags": ["a"]}, "wrong value"),
        ({"tags": [["a", "b"]]}, {"tags": "a"}, "wrong value"),
        ({"box": {"w": [1, 2], "h": 3}}, {"box": {"h": 3, "w": 2}}, "right"),
        ({"box": {"w": 1, "h": [3, None]}}, {"box": {"w": 1}}, "right"),
        ({"box": {"w": 1}}, {"box": {"w": 1, "h": 3}}, "wrong value"),
        ({"box": {"w": 1}}, {"box": [1]}, "wrong value"),
        ({"tags": [[{"n": ["cup", "cups"]}]]}, {"tags": [{"n": "Cups"}]}, "right"),
    ],
)
def test_arguments_are_compared_by_type_and_meaning(allowed, given, cause):
    """Too strict scores a model for its punctuation, too lax for calls that would not run."""
    assert verdict([("ship", allowed)], ("ship", given)).cause == cause


X, Y = ("ship", {"to": "x"}), ("ship", {"to": "y"})


@pytest.mark.parametrize(
    ("wanted", "made", "cause", "right_tool"),
    [
        ([], [], "right", True),
        ([], [X], "needless call", False),
        ([X], [], "no call", False),
        ([X, Y], [Y, X], "right", True),
        ([X, Y], [X, X], "wrong value", True),
        ([X, Y], [Y], "a call is missing", False),
        ([X], [X, Y], "a call too many", False),
        ([X], [("cancel", {})], "wrong tool", False),
        ([X], [("Ship", {"to": "x"})], "unknown tool", False),
        ([X, ("cancel", {})], [("cancel", {}), X], "right", True),
        ([X], [("ship", '{"to": "x"')], "not JSON", True),
        ([X], [("ship", '["x"]')], "not JSON", True),
        ([X], [("ship", "[" * 100_000)], "not JSON", True),
        ([("cancel", {})], [("cancel", "")], "right", True),
    ],
)
def test_calls_are_compared_without_order(wanted, made, cause, right_tool):
    """Each way of being wrong has its name, because the picture of a model's faults is of these."""
    found = verdict(wanted, *made)
    assert (found.cause, found.right_tool) == (cause, right_tool)


def test_an_answer_cut_off_is_told_from_a_refusal():
    """One wants more ``max_tokens``, the other another model."""
    assert verdict([X], text="<tool_c", finish="length").cause == "cut off"


def test_the_own_questions_are_enough_and_can_be_answered():
    """Every expected call fits its tool's schema, and would be scored as right."""
    asked = read()
    offered = {tool["function"]["name"] for one in asked for tool in one.tools}
    assert len(asked) >= 60 and len(offered) >= 8
    assert {"no call", "ask back", "two calls", "nested", "units"} <= {one.kind for one in asked}
    assert len({one.text for one in asked}) == len(asked)
    for one in asked:
        schemas = {t["function"]["name"]: t["function"]["parameters"] for t in one.tools}
        made = []
        for part in filter(None, one.expected.split("; ")):
            name, text = re.fullmatch(r"(\w+)\((.*)\)", part).groups()
            jsonschema.validate(json.loads(text), schemas[name])
            made.append(Call(name=name, arguments=text))
        assert judge(one, Reply(calls=tuple(made))).cause == "right", one
        wrong = judge(one, Reply(calls=(*made, Call(name="track_parcel", arguments="{}"))))
        assert wrong.cause in ("needless call", "a call too many", "wrong tool", "unknown tool")


def test_the_adapter_was_not_trained_on_these_tools():
    """A score on tools that were trained on would flatter."""
    families = yaml.safe_load((ASSETS / "tool_calling" / "families.yaml").read_text())["families"]
    trained = {name for family in families for name in family["names"]}
    assert not trained & {tool["function"]["name"] for one in read() for tool in one.tools}


async def test_scores_are_counted_by_kind():
    """A model that always makes the same call is right where it belongs and wrong elsewhere."""
    asked = [question(X, kind="one"), question(Y, kind="one"), question(kind="none"),
             question(X, Y, kind="two")]  # fmt: skip
    async with Scripted(wants(call("ship", {"to": "x"}))) as (server, endpoint):
        found = await tools.evaluate(endpoint, asked, progress=False)
    assert found.table()["right"].to_dict() == {"one": 1, "none": 0, "two": 0, "all": 1}
    assert found.table()["right_tool"].to_dict() == {"one": 2, "none": 0, "two": 0, "all": 2}
    assert found.overall()["right"].tolist() == [2, 1, 0]
    assert found.overall()["questions"].tolist() == [3, 3, 1]
    assert found.causes().to_dict() == {
        "needless call": 1, "a call is missing": 1, "wrong value": 1,
    }  # fmt: skip
    assert found.failures()["cause"].tolist() == ["wrong value", "needless call",
                                                  "a call is missing"]  # fmt: skip
    assert "right tool: 2 of 3, 67 %" in str(found)
    assert all(one["temperature"] == 0 and one["tool_choice"] == "auto" for one in server.asked)


async def test_the_picture_names_the_commonest_mistake():
    """Its title is what a reader takes home; with nothing wrong it has to say that."""
    asked = [question(X, kind="one"), question(Y, kind="one"), question(kind="none")]
    async with Scripted(wants(call("ship", {"to": "x"}))) as (_, endpoint):
        found = await tools.evaluate(endpoint, asked, progress=False)
        fine = await tools.evaluate(endpoint, asked[:1], progress=False)
    picture = plots_tools.mistakes(found)
    assert picture.get_suptitle().startswith("2 of 3 questions went wrong, most often: ")
    labels = [label.get_text() for label in picture.axes[0].get_xticklabels()]
    assert [" ".join(label.split()) for label in labels] == ["right", "needless call",
                                                             "wrong value"]  # fmt: skip
    assert plots_tools.mistakes(fine).get_suptitle() == "All 1 questions right"


async def test_a_forced_choice_is_for_questions_that_need_a_call():
    """Required or named, a refusal cannot be right; a name can only be given for one call."""
    asked = [question(X), question(), question(X, Y)]
    async with Scripted(wants(call("ship", {"to": "x"}))) as (server, endpoint):
        found = await tools.evaluate(endpoint, asked, tool_choice="required", progress=False)
        assert len(found.verdicts) == 2 and found.overall()["questions"].tolist() == [2, 2]
        server.asked.clear()
        await tools.evaluate(endpoint, asked, tool_choice="named", progress=False)
        named = {"type": "function", "function": {"name": "ship"}}
        assert [one["tool_choice"] for one in server.asked] == [named]
        with pytest.raises(CourseError, match="no question"):
            await tools.evaluate(endpoint, [question()], tool_choice="named")


@pytest.mark.parametrize("answer", [(400, '{"error": {"message": "no"}}'), (200, "<html>")])
async def test_a_failing_server_is_a_row_and_not_an_end(answer):
    """One refused question of eighty must not cost the other seventy-nine."""
    async with Scripted(answer, said("fine")) as (_, endpoint):
        found = await tools.evaluate(endpoint, [question()] * 3, users=1, progress=False)
    assert [one.cause for one in found.verdicts] == ["server failed", "right", "right"]
    assert found.failures()["got"].iloc[0]


async def test_a_server_that_is_not_there_scores_nothing():
    """Every row says so, and no exception comes out of the gathering."""
    nowhere = Endpoint(base_url="http://127.0.0.1:9/v1", model="m")
    found = await tools.evaluate(nowhere, [question(X)] * 2, request_s=5, progress=False)
    assert found.causes().to_dict() == {"server failed": 2}


async def test_no_more_questions_in_flight_than_users():
    """More than the server has slots would measure its queue, and hit a hosted API's limit."""
    now, most = 0, 0

    async def answer(_request):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        message = {"role": "assistant", "content": "x"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response({"id": "x", "object": "chat.completion", "created": 1,
                                  "model": "m", "choices": [choice]})  # fmt: skip

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    base_url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1"
    try:
        endpoint = Endpoint(base_url=base_url, model="m")
        await tools.evaluate(endpoint, [question()] * 12, users=3, progress=False)
    finally:
        await runner.cleanup()
    assert most == 3


async def test_two_evaluations_side_by_side():
    """Which questions only one of two models gets right says more than two percentages."""
    asked = [question(X, kind="a"), question(kind="b")]
    async with Scripted(wants(call("ship", {"to": "x"}))) as (_, endpoint):
        first = await tools.evaluate(endpoint, asked, progress=False)
    async with Scripted(said("no")) as (_, endpoint):
        second = await tools.evaluate(endpoint, asked, progress=False)
    table = tools.compare(first, second)
    assert table.loc["all"].tolist() == [2, 1, 1, 1, 1]
    assert table.loc["a"].tolist() == [1, 1, 0, 1, 0]
    with pytest.raises(CourseError, match="different questions"):
        tools.compare(first, await tools.evaluate(endpoint, asked[:1], progress=False))


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "tools: {}",
        "tools: {}\nquestions: [{kind: k, tools: [x], ask: a, calls: []}]",
        QUESTIONS.read_text().replace("track_parcel: {number", "track_parcel: {nummer", 1),
        "[1, 2]",
        "",
    ],
)
def test_a_file_of_questions_that_is_none_is_a_sentence(text, tmp_path):
    """A reader's own file has typing errors; a call that no tool takes could never be right."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(CourseError, match="form"):
        read(path)
    with pytest.raises(CourseError, match="cannot be read"):
        read(tmp_path / "missing.yaml")
