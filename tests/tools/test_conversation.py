"""What is kept of a conversation, how it is shown, and what goes back to the server."""

import json

from support.scripted import call

from helpers.load.client.answer import Message, numbered
from helpers.load.client.reading import Answer
from helpers.tools.conversation import Conversation, Step


def reply(*calls, text="", **more):
    return Answer(deltas=[numbered({"content": text, "tool_calls": list(calls)})], **more)


def test_a_broken_call_goes_back_in_a_form_that_servers_take():
    """They refuse a chat with a name or arguments that they cannot read, and two equal ids."""
    talk = Conversation(messages=[])
    calls = [call("double", "{", "x"), call("no name!", "[1]", "x"), call("double", "", ""),
             call("double", "{}", "a1")]  # fmt: skip
    kept = talk.add_reply(reply(*calls), 1, talk.began)
    [sent] = talk.messages
    assert [(one.name, one.arguments) for one in kept][:2] == [("double", "{"), ("no name!", "[1]")]
    assert [one["function"]["name"] for one in sent["tool_calls"]] == [
        "double", "unreadable", "double", "double"
    ]  # fmt: skip
    assert {one["function"]["arguments"] for one in sent["tool_calls"]} == {"{}"}
    ids = [one["id"] for one in sent["tool_calls"]]
    assert ids == [one.id for one in kept] and len(set(ids)) == 4
    assert {len(one) for one in ids} == {9}


def test_a_reply_is_a_step():
    """With the server's counts, and a mark where it was cut off."""
    talk = Conversation(messages=[{"role": "user", "content": "Hi"}])
    talk.add_reply(reply(call("f", {"a": 1}), prompt_tokens=7), 1, talk.began)
    talk.add_reply(reply(text="Hello", finish="length"), 2, talk.began)
    assert [step.phase for step in talk.steps] == ["deciding", "answering"]
    assert [step.what for step in talk.steps] == ['f({"a": 1})', "Hello"]
    assert talk.steps[0].prompt_tokens == 7
    assert talk.problems == ["cut off at max_tokens"] and talk.answer == "Hello"
    frame = talk.frame()
    assert frame["phase"].tolist() == ["deciding", "answering"]
    assert frame["prompt_tokens"].tolist() == [7, 0]


def test_calls_of_one_round_count_once():
    """They run at the same time."""
    times = [(1, 0, 1), (1, 0.5, 2), (2, 5, 6)]
    steps = [Step(phase="executing", round=number, start_s=start, end_s=end, what="")
             for number, start, end in times]  # fmt: skip
    talk = Conversation(messages=[], steps=steps)
    assert talk.seconds("executing") == 3 and talk.seconds("answering") == 0


def test_it_is_shown_without_a_strangers_control_characters():
    """A page's escape codes must not reach the terminal's cursor."""
    step = Step(phase="executing", round=1, start_s=0, end_s=1, what="\x1b[2Kx", problem="no")
    talk = Conversation(messages=[{"role": "user", "content": "Hi"}], steps=[step], stopped="late")
    assert "\x1b" not in repr(talk)
    assert repr(talk).splitlines()[1].startswith("!executing    1000 ms ")
    assert repr(talk).endswith("!stopped: late")


def test_a_history_can_be_sent_as_json():
    """Half a surrogate pair would break the request that carries it."""
    talk = Conversation(messages=[])
    talk.add_reply(reply(call("f", '{"a": "\ud83d"}'), text="\ud83d"), 1, talk.began)
    json.dumps(talk.messages, ensure_ascii=False).encode()
    assert Message([numbered(talk.messages[0])]).calls[0].name == "f"
