"""Token times, usage and causes, from answers good and bad, however they are cut."""

import json
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.answers import DONE, ROLE, STOP, WORD, count, event, usage

from helpers.load.client import reading
from helpers.load.client.reading import Answer, read
from helpers.load.client.transport import Exchange


def answer(pieces: list[bytes]) -> Answer:
    """The answer read, a piece a second from 1."""
    exchange = Exchange()
    exchange.status, exchange.pieces = 200, pieces
    exchange.times = [float(second) for second in range(1, len(pieces) + 1)]
    return read(exchange)


def test_a_tokens_time_is_that_of_its_read():
    """The role, an empty text and usage are no tokens."""
    found = answer([ROLE, WORD, event({"content": ""}), WORD, STOP, count(2), DONE])
    assert (found.token_times, found.output_tokens, found.prompt_tokens) == ([2.0, 4.0], 2, 3)
    assert (found.finish, found.cause, found.message().text) == ("stop", "", "ww")


WORDS = st.sampled_from(['"content":"x', "\n\ndata: [DONE]\n\n", "", "w", "é\u2028", "\\", '","'])


# What only some servers send, and how many tokens are in it.
ODD = [
    (b": ping\n\n", 0),
    (b'data: {"choices":[]}\n\n', 0),
    (count(1), 0),
    (ROLE, 0),
    (event({"reasoning": "hm"}), 1),
    (b'data:{"choices":[{"delta":{"content":"w"}}]}\n\n', 1),
    (b'event: x\ndata: {"choices":\ndata: [{"delta":{"content":"w"}}]}\n\n', 1),
    (WORD[:-1] + WORD, 2),
]


@st.composite
def streams(draw) -> list[tuple[bytes, int]]:
    """Events and how many tokens are in each."""
    words = draw(st.lists(WORDS))
    middle = [(event({"content": word}), int(word != "")) for word in words]
    for odd in draw(st.lists(st.sampled_from(ODD), max_size=2)):
        middle.insert(draw(st.integers(0, len(middle))), odd)
    made = [(ROLE, 0), *middle, (WORD, 1), (STOP, 0), (count(4), 0), (DONE, 0)]
    if draw(st.booleans()):
        made = [(one.replace(b"\n", b"\r\n"), tokens) for one, tokens in made]
    return made


@settings(max_examples=300, deadline=None)
@given(streams(), st.data())
def test_tokens_are_found_wherever_the_cuts_are(events, data):
    """Read at once or event by event, in pieces of any size, an answer is the same."""
    body = b"".join(one for one, _ in events)
    ends = list(accumulate(len(one) for one, _ in events))
    cuts = data.draw(st.just(ends[:-1]) | st.sets(st.integers(1, len(body) - 1)).map(sorted))
    pieces = [body[a:b] for a, b in pairwise([0, *cuts, len(body)])]
    found = answer(pieces)
    times = [1.0 + sum(cut < end for cut in cuts) for end in ends]
    assert found.token_times == [
        time for time, (_, tokens) in zip(times, events, strict=True) for _ in range(tokens)
    ]
    assert (found.cause, found.output_tokens, found.finish) == ("", 4, "stop")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_at_once", lambda exchange: None)
        assert answer(pieces) == found


@pytest.mark.parametrize("gap", [b"\n\n", b"\r\n\r\n"])
def test_a_plain_stream_is_decoded_at_once(gap, monkeypatch):
    """One by one takes four times as long; what only looks plain is left to that."""
    monkeypatch.setattr(reading, "sse_events", None)
    events = [ROLE, *[WORD] * 8, event({"content": "\n\ndata: x"}), STOP, count(9), DONE]
    found = answer([one.replace(b"\n\n", gap) for one in events])
    assert len(found.token_times) == 9 and not found.cause
    for odd in (b'error: {"code":500}', b": ping", b"retry: 5", b'event: {"a":1}', b"data: 5"):
        exchange = Exchange()
        exchange.pieces = [ROLE, odd + gap, DONE]
        assert reading._at_once(exchange) is None


LATE_ERROR = event({"content": ""}, "error", error={"code": 502, "message": "gone"})


@pytest.mark.parametrize(
    ("events", "cause"),
    [
        ([b"data: {this is not json}\n\n", DONE], "malformed"),
        ([b"data: {this is not json}\n\n", WORD, STOP, DONE], "malformed"),
        ([b'data: {"choices":[{"delta":{"content":"w"}]}\n\n', DONE], "malformed"),
        ([b'data: {"choices":[5]}\n\n', WORD, DONE], "malformed"),
        ([b'data: {"choices":7}\n\n', WORD, DONE], "malformed"),
        ([b"hello"], "malformed"),
        ([], "malformed"),
        ([DONE], "malformed"),
        ([ROLE, DONE], "malformed"),
        ([ROLE, STOP, DONE], "malformed"),  # no text, and no usage that would say so
        ([ROLE, WORD], "malformed"),
        ([ROLE, WORD, LATE_ERROR, DONE], "server error"),
        ([ROLE, WORD, LATE_ERROR, count(1), DONE], "server error"),
        ([ROLE, WORD, event({}, "error"), count(1), DONE], "server error"),
        ([ROLE, WORD, b'error: {"code":500}\n\n'], "server error"),
        ([ROLE, WORD, b'data: {"object":"error","message":"x"}\n\n', DONE], "server error"),
        ([ROLE, STOP, count(0), DONE], ""),  # the model had nothing to say
        ([ROLE, STOP, count(1), DONE], ""),
        ([ROLE, event({"tool_calls": [{"index": 0}]}, "tool_calls"), count(9), DONE], ""),
        ([ROLE, WORD, STOP, DONE], ""),  # a server without usage
        ([ROLE, WORD, STOP], ""),  # nor [DONE]
        ([ROLE, event({"content": '"error":{"a":1}'}), STOP, count(3), DONE], ""),
        ([ROLE, event({"content": "w"}, error=None), STOP, count(1), DONE], ""),
        ([b'data: {"choices":[{"delta":null}]}\n\n', WORD, STOP, DONE], ""),
        ([b": ping\n\n", ROLE, WORD, STOP, count(1), DONE], ""),
    ],
)
def test_only_an_answer_is_a_good_answer(events, cause):
    """A server that streams rubbish, nothing or an error at full speed is not a fast server."""
    found = answer(events)
    assert found.cause == cause and bool(found.error) == bool(cause)


DEEP = '{"completion_tokens":' + "[" * 200_000


@pytest.mark.parametrize(
    ("odd", "cause"),
    [
        ("5", ""),
        ('{"completion_tokens":null}', ""),
        ('{"completion_tokens":"7"}', ""),
        ('{"completion_tokens":true}', ""),
        ('{"completion_tokens":2,"prompt_tokens":[1],"prompt_tokens_details":[1]}', ""),
        (DEEP, "malformed"),
    ],
)
def test_odd_usage_is_passed_over(odd, cause):
    """What the server does not count are the tokens that came; nothing is raised."""
    found = answer([ROLE, WORD, WORD, STOP, usage(odd), DONE])
    assert (found.output_tokens, found.prompt_tokens, found.cause) == (2, 0, cause)


@pytest.mark.parametrize(
    "counts",
    [
        [],
        [count(0)],
        [usage('{"prompt_tokens":0,"completion_tokens":0}')],
        [count(1), count(2), count(0)],  # some count in each event
        [count(2).replace(b"[]", b'[{"index":0,"delta":{"content":""},"finish_reason":null}]')],
        [count(2).replace(b"[]", b"null"), DONE, DONE],
    ],
)
def test_a_text_is_never_of_no_tokens(counts):
    """Usage may be missing, zero, in each event, or late and with a choice."""
    found = answer([ROLE, WORD, WORD, event({}, "length"), *counts, DONE])
    assert (found.output_tokens, found.finish, found.cause) == (2, "length", "")


def test_text_beside_the_delta_repeats_it():
    """Some gateways send the text so far, or all of it at the end, in fields of their own."""
    beside = {"text": "w", "message": {"content": "ww"}}
    events = [event({"content": "w"}), event({}, "stop")]
    for number, one in enumerate(events):
        entry = json.loads(one[6:])
        entry["choices"][0] |= beside
        events[number] = b"data: %s\n\n" % json.dumps(entry | {"message": "ok"}).encode()
    found = answer([ROLE, *events, DONE])
    assert (found.token_times, found.message().text, found.cause) == ([2.0], "w", "")


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "", "reasoning": "w"},  # Ollama
        {"content": None, "reasoning": "w"},  # OpenRouter
        {"content": "", "reasoning_content": "w"},
        {"reasoning_content": "w", "reasoning": "w"},  # vLLM
        {"content": "", "reasoning_content": "w", "reasoning": "w"},
    ],
)
def test_reasoning_is_text(delta):
    """A thinking model's first token is that of its thoughts, counted once."""
    found = answer([*[event(delta)] * 20, *[WORD] * 5, STOP, count(25), DONE])
    assert found.token_times == [float(second) for second in range(1, 26)] and not found.cause
    assert found.message().text == "w" * 5


def test_an_answer_that_is_not_streamed_is_read():
    """A server that ignores ``stream`` hands over everything at once: one piece, at its end."""
    wish = {"function": {"name": "f", "arguments": "{}"}}
    message = {"content": "ww", "tool_calls": [wish, wish]}
    entry = {"choices": [{"message": message, "finish_reason": "stop"}],
             "usage": {"completion_tokens": 2, "prompt_tokens": 3}}  # fmt: skip
    body = json.dumps(entry).encode()
    found = answer([body[:9], body[9:]])
    assert (found.token_times, found.output_tokens, found.prompt_tokens) == ([2.0], 2, 3)
    assert (found.finish, found.cause, found.message().text) == ("stop", "", "ww")
    assert [call.name for call in found.message().calls] == ["f", "f"]
    assert answer([b'{"error":{"code":500}}']).cause == "server error"
    assert answer([b'{"choices":[{"message":3}]}']).cause == "malformed"


def test_arguments_of_a_call_are_tokens():
    """Its name alone is none."""
    pieces = [{"name": "f", "arguments": ""}, {"arguments": "{"}, {"arguments": "}"}]
    calls = [event({"tool_calls": [{"index": 0, "function": piece}]}) for piece in pieces]
    found = answer([*calls, event({}, "tool_calls"), count(9), DONE])
    assert found.token_times == [2.0, 3.0] and found.message().calls[0].arguments == "{}"


def test_what_came_before_a_failure_stays():
    """The tokens of an answer that broke off, and the cause that the transport found."""
    exchange = Exchange()
    exchange.status, exchange.pieces, exchange.times = 200, [ROLE + WORD, WORD[:9]], [1.0, 2.0]
    exchange.fail("closed early", "gone")
    found = read(exchange)
    assert (found.token_times, found.cause, found.error) == ([1.0], "closed early", "gone")
    exchange = Exchange()
    exchange.status, exchange.pieces = 429, [b" busy \n"]
    assert (read(exchange).cause, read(exchange).error) == ("http 429", "busy")


def test_a_redirects_target_is_in_the_record():
    """It is not followed, as it would add its time to each request's."""
    exchange = Exchange()
    exchange.status, exchange.headers = 308, {"location": "/new/v1/chat/completions"}
    assert read(exchange).error == "redirect to /new/v1/chat/completions"
