"""Events are found however they are cut, and a message is put together however it is pieced."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.load.client.answer import Delta, Message, numbered, sse_events

STREAM = (
    ': ping\n\nevent: message\nid: 1\ndata: {"a": "é\u2028"}\r\n\r\ndata:{"b":\ndata: 2}\n\n'
    '\ndata: {"c": "\\ud83d"}\n\ndata: {"d": 4}\ndata: [DONE]\n\nerror: {"code": 5}'
).encode()
EVENTS = [{"a": "é\u2028"}, {"b": 2}, {"c": "\ud83d"}, {"d": 4}, None, {"error": {"code": 5}}]


@given(st.lists(st.integers(1, len(STREAM) - 1), unique=True).map(sorted))
def test_events_wherever_the_cuts_are(cuts):
    """Each is found once, with the piece that completed it."""
    pieces = [STREAM[a:b] for a, b in zip([0, *cuts], [*cuts, len(STREAM)], strict=True)]
    found = list(sse_events(pieces))
    assert [event for _, event in found] == EVENTS
    ends = [STREAM.index(b"2}\n\n") + 4, STREAM.index(b'3d"}\n\n') + 6, STREAM.index(b"E]\n\n") + 4]
    starts = [0, *cuts]
    completed = [max(i for i, at in enumerate(starts) if at < end) for end in ends]
    assert [found[number][0] for number in (1, 2, 3)] == completed


@pytest.mark.parametrize(
    "body",
    [b"hello", b"data: {oops}\n\n", b"data: 5\n\n", b'data: {"a":1}{\n\n', b"data: {\xff}\n\n",
     b'data: {"a":' + b"[" * 200_000 + b"\n\n"],
)  # fmt: skip
def test_what_is_no_event_raises_after_those_that_are(body):
    events = sse_events([b'data: {"good":1}\n\n' + body])
    assert next(events) == (0, {"good": 1})
    with pytest.raises(ValueError, match=r"not an event|not a stream of events"):
        list(events)


def streamed(*calls: tuple) -> Message:
    return Message(
        Delta(
            tool_calls=[
                {"index": index, "id": id, "function": {"name": name, "arguments": arguments}}
            ]
        )
        for index, id, name, arguments in calls
    )


@pytest.mark.parametrize(
    "calls",
    [
        [(0, "A", "f", ""), (0, None, None, '{"a"'), (0, None, None, ": 1}"), (1, "B", "g", "{}")],
        [(0, "A", "f", '{"a": 1}'), (0, "B", "g", "{}")],
        [(None, "A", "f", '{"a"'), (None, None, None, ": 1}"), (None, "B", "g", "{}")],
        [(None, "A", "f", '{"a"'), (None, "A", "f", ": 1}"), (None, "B", "g", "{}")],
        [(None, "A", "f", ""), (None, "A", "", '{"a"'), (None, "A", "", ": 1}"),
         (None, "B", "g", ""), (None, "B", "", "{}")],
        [(0, "A", "f", '{"a"'), (0, "A", "f", ": 1}"), (1, "B", "g", "{}")],
        [(0, "A", "f", ""), (0, None, "f", '{"a"'), (0, None, "f", ": 1}"), (0, None, "f", ""),
         (1, "B", "g", "{}"), (1, None, "g", "")],
        [(0, "A", "f", '{"a"'), (0, "x", None, ": 1}"), (1, "B", "g", "{"), (1, "y", None, "}")],
        [(0, "A", "f", '{"a"'), (0, "x", "f", ": 1}"), (0, "B", "g", "{}")],
        [(None, "A", "f", '{"a"'), (0, None, None, ": 1}"), (1, "B", "g", "{}")],
        [(1, "B", "g", "{"), (0, "A", "f", '{"a": 1}'), (1, None, None, "}")],
        [(0, "A", None, ""), (0, "", "f", {"a": 1}), (1, "B", "g", {})],
    ],
    ids=["as specified", "all are 0", "none has an index", "nor a pause", "null and ids repeated",
         "repeated", "names repeated", "new ids", "new ids and names repeated", "null at first",
         "mixed", "objects"],
)  # fmt: skip
def test_streamed_calls_are_put_together(calls):
    """Servers number the pieces of calls in their own ways; a new call begins with a name."""
    found = [(call.id, call.name, call.arguments) for call in streamed(*calls).calls]
    assert found == [("A", "f", '{"a": 1}'), ("B", "g", "{}")]


@pytest.mark.parametrize("ids", [(None, None), ("A", "B")])
@pytest.mark.parametrize("index", [None, 0])
def test_the_same_function_twice_is_two_calls(index, ids):
    """Where one's arguments are complete, a name with arguments begins the next."""
    calls = streamed(
        (index, ids[0], "f", '{"a"'),
        (index, None, None, ": 1}"),
        (index, ids[1], "f", '{"a": 2}'),
    ).calls
    assert [call.parsed() for call in calls] == [{"a": 1}, {"a": 2}]


def test_calls_without_ids():
    """A new call begins with another name."""
    pieces = [(None, None, "f", '{"a"'), (None, None, "f", ": 1}"), (None, None, "g", "{}"),
              (0, None, "h", "{}"), (0, None, "i", "{}")]  # fmt: skip
    calls = [(call.name, call.arguments) for call in streamed(*pieces).calls]
    assert calls == [("f", '{"a": 1}'), ("g", "{}"), ("h", "{}"), ("i", "{}")]


def test_a_message_is_text_that_can_be_sent_again():
    """Refusals and lists of parts are text; half a surrogate pair is replaced; odd is nothing."""
    message = Message(
        Delta(**delta)
        for delta in (
            {"content": "", "reasoning": "hm", "reasoning_content": "hm"}, {"content": None},
            {"content": 5, "tool_calls": 7}, {"content": "a\ud83d"}, {"refusal": "no"},
            {"content": [{"type": "text", "text": "b"}, 3]}, {"tool_calls": [None]},
        )
    )  # fmt: skip
    assert message.text == "a?nob"
    assert json.dumps(message.as_dict()).encode()
    assert Message([numbered({"content": "x"})]).as_dict() == {"role": "assistant", "content": "x"}


def test_calls_of_a_whole_message_stay_apart():
    """Also where a server gives all the same id, or no arguments."""
    wish = {"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}
    other = {"id": "", "type": "function", "function": {"name": "g", "arguments": ""}}
    message = Message([numbered({"content": None, "tool_calls": [wish, wish, other, other]})])
    wishes = [wish, wish, other, other]
    assert message.as_dict() == {"role": "assistant", "content": "", "tool_calls": wishes}
