"""The evaluation: every question asked once, and the scores counted."""

import pytest
from support.asked import question
from support.scripted import Scripted, call, counting, said, wants

from helpers import tools
from helpers.endpoint import Endpoint
from helpers.errors import CourseError

X, Y = ("ship", {"to": "x"}), ("ship", {"to": "y"})


async def test_scores_are_counted_by_kind():
    """A model that always makes the same call is right where it belongs and wrong elsewhere."""
    asked = [question(X, kind="one"), question(Y, kind="one"), question(kind="none"),
             question(X, Y, kind="two")]  # fmt: skip
    async with Scripted(wants(call("ship", {"to": "x"}))) as (server, endpoint):
        found = await tools.evaluate(endpoint, asked)
    assert found.table()["right"].to_dict() == {"one": 1, "none": 0, "two": 0, "all": 1}
    assert found.table()["right_tool"].to_dict() == {"one": 2, "none": 0, "two": 0, "all": 2}
    assert found.overall()["right"].tolist() == [2, 1, 0]
    assert found.overall()["questions"].tolist() == [3, 3, 1]
    assert found.failures()["cause"].tolist() == ["wrong arguments", "needless call",
                                                  "wrong number of calls"]  # fmt: skip
    assert "right tool: 2 of 3, 67 %" in str(found)
    assert all(one["temperature"] == 0 and one["tool_choice"] == "auto" for one in server.asked)


async def test_a_forced_choice_is_for_questions_that_need_a_call():
    """With ``required`` a refusal cannot be right."""
    asked = [question(X), question(), question(X, Y)]
    async with Scripted(wants(call("ship", {"to": "x"}))) as (server, endpoint):
        found = await tools.evaluate(endpoint, asked, tool_choice="required")
        assert len(found.frame) == 2 and found.overall()["questions"].tolist() == [2, 2]
    assert {one["tool_choice"] for one in server.asked} == {"required"}


@pytest.mark.parametrize("answer", [(400, '{"error": {"message": "no"}}'), (200, "<html>")])
async def test_a_failing_server_is_a_row_and_not_an_end(answer):
    """One refused question of eighty must not cost the other seventy-nine."""
    async with Scripted(answer, said("fine")) as (_, endpoint):
        found = await tools.evaluate(endpoint, [question()] * 3, users=1)
    assert found.frame["cause"].tolist() == ["server failed", "right", "right"]
    assert found.failures()["got"].iloc[0]


async def test_a_server_that_is_not_there_scores_nothing():
    """Every row says so, and no exception comes out of the gathering."""
    nowhere = Endpoint(base_url="http://127.0.0.1:9/v1", model="m")
    found = await tools.evaluate(nowhere, [question(X)] * 2)
    assert found.frame["cause"].tolist() == ["server failed"] * 2


async def test_no_more_questions_in_flight_than_users():
    """More than the server has slots would measure its queue, and hit a hosted API's limit."""
    most: list[int] = []
    async with Scripted(counting(most)) as (_, endpoint):
        await tools.evaluate(endpoint, [question()] * 12, users=3)
    assert max(most) == 3


async def test_two_evaluations_side_by_side():
    """Which questions only one of two models gets right says more than two percentages."""
    asked = [question(X, kind="a"), question(kind="b")]
    async with Scripted(wants(call("ship", {"to": "x"}))) as (_, endpoint):
        first = await tools.evaluate(endpoint, asked)
    async with Scripted(said("no")) as (_, endpoint):
        second = await tools.evaluate(endpoint, asked)
    table = tools.difference(first, second)
    assert table.loc["all"].tolist() == [2, 1, 1, 1, 1]
    assert table.loc["a"].tolist() == [1, 1, 0, 1, 0]
    with pytest.raises(CourseError, match="different questions"):
        tools.difference(first, await tools.evaluate(endpoint, asked[:1]))
