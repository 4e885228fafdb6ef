"""One request: an answer, or a sentence that says what to do."""

import asyncio
import json
import time

import pytest
from support.scripted import Scripted, said

from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.tools.ask import ask, connect, several

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


async def once(endpoint, stream, timeout_s=5):
    async with connect(endpoint) as client:
        return await ask(client, CHAT, timeout_s=timeout_s, stream=stream)


both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


def answer(stream, **choice):
    """What a server sends, with a choice of whatever kind."""
    events = {"id": "x", "choices": [{"index": 0, **choice}], "usage": "many"}
    text = json.dumps(events)
    return 200, f"data: {text}\n\ndata: [DONE]\n\n" if stream else text


@both
async def test_an_answer_is_read(stream):
    """Text, reason and counts, however they come."""
    async with Scripted(said("Hello")) as (_, endpoint):
        found = await once(endpoint, stream)
    assert (found.message.text, found.finish) == ("Hello", "stop")
    assert (found.usage["prompt_tokens"], found.usage["completion_tokens"]) == (7, 5)


@both
async def test_calls_count_whatever_the_reason(stream):
    """The finish reason of a named call is ``stop``; some servers send objects."""
    wish = {"index": None, "id": None, "function": {"name": "double", "arguments": {"number": 4}}}
    said = {"role": "assistant", "content": None, "tool_calls": [wish]}
    kind = "delta" if stream else "message"
    async with Scripted(answer(stream, finish_reason="stop", **{kind: said})) as (_, endpoint):
        found = await once(endpoint, stream)
    [call] = found.message.calls
    assert (call.name, json.loads(call.arguments), found.finish) == (
        "double",
        {"number": 4},
        "stop",
    )
    assert found.usage == {}


async def test_a_stream_may_lack_what_nobody_needs():
    """The last event with counts only, a reason left out."""
    events = [{"choices": [{"delta": {"content": "Hi"}}]}, {"usage": {"prompt_tokens": 3}}]
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    async with Scripted((200, text)) as (_, endpoint):
        found = await once(endpoint, stream=True)
    assert (found.message.text, found.finish, found.usage["prompt_tokens"]) == ("Hi", "", 3)


@both
@pytest.mark.parametrize(
    ("status", "text", "told"),
    [
        (400, '{"error": {"message": "auto tool choice requires a flag"}}', "auto-tool-choice"),
        (401, '{"error": {"message": "no"}}', "api_key"),
        (404, "no such page", "refuses"),
        (200, "<html>hello</html>", "not one of the OpenAI API"),
        (200, '{"choices": []}', "not one of the OpenAI API"),
        (200, "null", "not one of the OpenAI API"),
        (200, '{"choices": [{"message": 3}]}', "not one of the OpenAI API"),
    ],
)
async def test_a_server_that_answers_nonsense_is_a_sentence(status, text, told, stream):
    """Not sixty lines of a library's own, and not an empty answer either."""
    async with Scripted((status, text)) as (_, endpoint):
        with pytest.raises(CourseError, match=told):
            await once(endpoint, stream)


@both
async def test_a_server_that_is_not_there_or_too_slow_is_a_sentence(stream):
    """With the limit that it broke."""
    with pytest.raises(CourseError, match="does not answer"):
        await once(Endpoint(base_url="http://127.0.0.1:9/v1", model="m"), stream)
    async with Scripted(lambda _: time.sleep(1) or said()) as (_, endpoint):
        with pytest.raises(CourseError, match="within 0"):
            await once(endpoint, stream, timeout_s=0.2)


async def test_no_more_at_once_than_wanted():
    """More than the server has slots would measure its queue, and hit a hosted API's limit."""
    now = most = 0

    async def job(number):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return number

    assert await several(map(job, range(12)), at_once=3) == list(range(12))
    assert most == 3
