"""Token times, usage and causes, from answers good and bad, however they are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.answers import DONE, ROLE, STOP, WORD, count, event, usage

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


@given(st.lists(st.integers(1, 400), unique=True).map(sorted))
def test_tokens_are_found_wherever_the_cuts_are(cuts):
    """Text that looks like an event or a key changes nothing."""
    words = ['"content":"x', "\n\ndata: [DONE]\n\n", ""]
    events = [ROLE, *(event({"content": word}) for word in words), STOP, count(4), DONE]
    body = b"".join(events)
    cuts = [cut for cut in cuts if cut < len(body)]
    found = answer([body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)])
    ends = [len(b"".join(events[: number + 1])) for number in (1, 2)]
    assert found.token_times == [1.0 + sum(cut < end for cut in cuts) for end in ends]
    assert (found.cause, found.output_tokens, found.finish) == ("", 4, "stop")
    assert found.message().text == "".join(words)


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
    assert (found.message().reasoning, found.message().text) == ("w" * 20, "w" * 5)


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
