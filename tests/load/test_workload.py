"""What is asked: repeatable, of the lengths that were wanted, and sent as the API wants it."""

import json
import statistics

import pytest

from helpers import load
from helpers.errors import CourseError
from helpers.load import arrivals, workload

TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}


def words(message: dict) -> int:
    """Number of words, which is the number of tokens asked for."""
    return len(message["content"].split())


def test_lengths_follow_their_distribution():
    """Prompts have the mean and the limits asked for, and so have the caps of the answers."""
    work = load.Synthetic(
        input_tokens=load.Lengths(mean=100, stdev=30, min=50, max=150), output_tokens=7
    )
    talks = [work.chat(index) for index in range(500)]
    lengths = [words(talk.turns[0][0]) for talk in talks]
    assert min(lengths) >= 50 and max(lengths) <= 150
    assert statistics.mean(lengths) == pytest.approx(100, rel=0.05)
    assert {talk.turns[0][1] for talk in talks} == {7}


def test_lengths_may_be_given_one_by_one():
    """As a trace has them: in order, from the start again at their end, and never empty."""
    work = load.Synthetic(input_tokens=(3, 50, 1), output_tokens=[9, 1, 2])
    chats = [work.chat(index) for index in range(6)]
    assert [words(chat.turns[0][0]) for chat in chats] == [3, 50, 1, 3, 50, 1]
    assert [chat.turns[0][1] for chat in chats] == [9, 1, 2, 9, 1, 2]
    assert chats[0] != chats[3]  # the words are new


def test_the_shared_prefix_is_shared_and_the_rest_is_not():
    """All chats open with the same system message, so that it can be cached."""
    work = load.Synthetic(input_tokens=20, shared_prefix_tokens=50, turns=2)
    first, second = work.chat(0), work.chat(1)
    assert first.opening == second.opening and words(first.opening[0]) == 50
    assert first.turns != second.turns and len(first.turns) == 2


@pytest.mark.parametrize(
    "work",
    [
        load.Synthetic(input_tokens=load.Lengths(mean=9, stdev=3), seed=3),
        load.Synthetic(input_tokens=(3, 50), output_tokens=(9, 1)),
        load.Prompts(items=("one", [{"role": "user", "content": "two"}]), tools=(TOOL,)),
        load.ToolCalls(asks=("{number} {word}?", "{count}"), tools=(TOOL, {}), seed=5),
    ],
)
def test_a_spec_makes_the_same_requests(work):
    """What is written into a spec, for another process or machine, asks exactly the same."""
    again = arrivals.from_spec(json.loads(json.dumps(workload.to_spec(work))))
    assert [again.chat(i) for i in range(9)] == [work.chat(i) for i in range(9)]


def test_the_body_is_the_apis():
    """Usage is asked for, tools are sent, and lengths are fixed only in words the server knows."""
    work = load.Synthetic()
    plain = json.loads(workload.body(work, "m", [TOOL], [], 5, exact=False))
    assert plain["stream_options"] == {"include_usage": True} and plain["tools"] == [TOOL]
    assert (plain["max_tokens"], plain["temperature"]) == (5, 0)
    newer = load.Prompts(items=["x"], cap_field="max_completion_tokens", temperature=1)
    newer = arrivals.from_spec(workload.to_spec(newer))
    body = json.loads(workload.body(newer, "m", [], [], 5, exact=False))
    assert (body["max_completion_tokens"], body["temperature"]) == (5, 1)
    assert "max_tokens" not in body
    assert plain["max_tokens"] == 5 and not plain.keys() & {"ignore_eos", "min_tokens"}
    both = ("ignore_eos", "min_tokens")
    exact = json.loads(workload.body(work, "m", [], [], 5, exact=True))
    assert (exact["ignore_eos"], exact["min_tokens"]) == (True, 5)
    free = load.Synthetic(ignore_eos=False)
    assert not set(both) & json.loads(workload.body(free, "m", [], [], 5, exact=True)).keys()


def test_prompts_and_chats_are_asked_in_order():
    """From the start again at their end; a chat's user messages are its turns."""
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Bye"},
    ]
    work = load.Prompts(items=["One", chat], output_tokens=9)
    assert work.chat(0) == work.chat(2)
    talk = work.chat(1)
    assert talk.opening == chat[:1] and talk.turns == [(chat[1], 9), (chat[3], 9)]
    with pytest.raises(CourseError, match="no prompts"):
        load.Prompts(items=())


def test_questions_with_tools_are_new_each_time():
    """A prompt asked twice would measure the prefix cache; tools in one order are to be found."""
    tools = tuple({"type": "function", "function": {"name": f"t{n}"}} for n in range(6))
    work = load.ToolCalls(asks=("Where is {number}?", "{count} of {word}, {number}"), tools=tools)
    talks = [work.chat(index) for index in range(200)]
    assert len({talk.turns[0][0]["content"] for talk in talks}) > 190
    assert all(talk.tools == list(tools) for talk in talks)
    with pytest.raises(CourseError, match="cannot be filled"):
        load.ToolCalls(asks=("{",), tools=tools)
    with pytest.raises(CourseError, match="cannot be filled"):
        load.ToolCalls(asks=("{colour}",), tools=tools)
    with pytest.raises(CourseError, match="no questions"):
        load.ToolCalls(asks=(), tools=tools)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (load.Lengths, {"mean": 9, "min": 20, "max": 5}),
        (load.Lengths, {"mean": 9, "stdev": -1}),
        (load.Synthetic, {"turns": 0}),
        (load.Synthetic, {"output_tokens": 0}),
        (load.Synthetic, {"input_tokens": ()}),
        (load.Synthetic, {"output_tokens": (5, 0)}),
    ],
)
def test_settings_that_mean_nothing_are_refused(kind, wrong):
    """Said where they are written, not by a process that breaks later."""
    with pytest.raises(CourseError):
        kind(**wrong)


@pytest.mark.parametrize(
    "item", [5, [], ["text"], [{"role": "system", "content": "s"}], [{"content": "x"}]]
)
def test_what_is_no_prompt_is_refused(item):
    """Chats that no user speaks in, and other things: refused where they are made."""
    with pytest.raises(CourseError, match="no prompt"):
        load.Prompts(items=("good", item))
