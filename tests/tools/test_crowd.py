"""Conversations with tools at the same time: how many, of what, and where their time goes."""

import asyncio
import time

import pytest
from support.scripted import Scripted, call, said, wants

from helpers import load, tools


@tools.tool
async def look_up(number: int) -> str:
    """Look something up; it takes a while."""
    await asyncio.sleep(0.1)
    return "here"


WORK = load.ToolCalls(asks=("Where is {number}?",), tools=(look_up.definition(),), output_tokens=9)


def by_turn(body):
    """A call to a question, an answer to a result."""
    asked = body["messages"][-1]["role"] == "user"
    return wants(call("look_up", {"number": 1})) if asked else said("There.")


async def test_users_talk_at_the_same_time_and_all_are_answered():
    """Four users' waits overlap, each asks something new, and phases add up to the whole."""
    async with Scripted(by_turn) as (server, endpoint):
        began = time.perf_counter()
        found = await tools.crowd(endpoint, WORK, [look_up], users=(1, 4),
                                  conversations_per_user=3)  # fmt: skip
        took = time.perf_counter() - began
    assert {users: len(talks) for users, talks in found.items()} == {1: 3, 4: 12}
    assert took < 15 * 0.1 + 3
    talks = [talk for some in found.values() for talk in some]
    assert len({talk.messages[0]["content"] for talk in talks}) == 15
    assert all(talk.answer == "There." and not talk.problems for talk in talks)
    assert {body["max_tokens"] for body in server.asked} == {9}
    table = tools.phases(found)
    assert table["failed"].tolist() == [0, 0] and table["calls"].tolist() == [1, 1]
    assert (table["executing_ms"] >= 99).all()
    parts = table[["deciding_ms", "executing_ms", "answering_ms"]].sum(axis=1)
    assert (parts <= table["whole_p95_ms"] * 1.2).all()
    assert table.loc[4, "per_minute"] > 1.5 * table.loc[1, "per_minute"]


async def test_a_server_that_fails_under_load_is_counted():
    """The conversations that it failed must not pass for fast ones."""
    full = (400, '{"error": {"message": "full"}}')
    async with Scripted(full, full, by_turn) as (_, endpoint):  # the first one is the warm-up's
        found = await tools.crowd(endpoint, WORK, [look_up], users=(1,))
    assert [bool(talk.stopped) for talk in found[1]] == [True, False, False, False]
    table = tools.phases(found)
    assert table.loc[1, "failed"] == 1 and table.loc[1, "conversations"] == 4
    async with Scripted((400, "{}")) as (_, endpoint):
        found = await tools.crowd(endpoint, WORK, [look_up], users=(2,))
    assert (
        tools.phases(found).loc[2, "failed"] == 8 and tools.phases(found).loc[2, "per_minute"] == 0
    )


@pytest.mark.parametrize("many", [1, 2])
async def test_load_records_of_calls(many):
    """The generator's record of a call: the server's tokens, each piece, and no false TPOT."""
    asked = wants(*(call("look_up", {"number": n}, f"id{n}") for n in range(many)))
    async with Scripted(asked) as (server, endpoint):
        run = await load.run(endpoint, WORK, load.ClosedLoop(users=2), requests=6, progress=False,
                             server_every_s=None)  # fmt: skip
    letters = many * len('{"number": 0}')
    assert [len(record.token_us) for record in run.records] == [letters] * 6
    assert all(record.ok and record.finish == "tool_calls" for record in run.records)
    assert {(r.prompt_tokens, r.output_tokens, r.tpot_s) for r in run.records} == {(7, 5, None)}
    bodies = [body for body in server.asked if body.get("tools")]
    assert len({body["messages"][0]["content"] for body in bodies}) == 6
