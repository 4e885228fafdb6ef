"""Waiting for a model: what is asked, what is shown, and when it is no use to go on."""

import asyncio
import json

import pytest
from support.listening import listen

from helpers.errors import CourseError
from helpers.serve import ready
from helpers.serve.spec import ENDED, STARTS

MODEL = {"id": "base", "object": "model", "created": 0, "owned_by": "vllm"}
COMPLETION = {
    "id": "c", "object": "text_completion", "created": 0, "model": "base",
    "choices": [{"index": 0, "text": "!", "finish_reason": "length", "logprobs": None}],
}  # fmt: skip


async def wait(answers, **options):
    """Wait for a server that gives one of the ``answers`` after the other, the last for ever.

    Each is a status and JSON. Returns what :func:`ready.endpoint` did, and what was asked.
    """
    left, asked = list(answers), []

    async def answer(body, writer):
        status, data = left.pop(0) if len(left) > 1 else left[0]
        asked.append(json.loads(body) if body else None)
        text = (data if isinstance(data, str) else json.dumps(data)).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)

    server, where = await listen(answer)
    async with server:
        options = {"poll_s": 0.01, "timeout_s": 10, **options}
        return await asyncio.to_thread(ready.endpoint, where.base_url, **options), asked


def listing(*models):
    return 200, {"object": "list", "data": list(models)}


async def test_it_is_ready_when_a_token_has_come():
    """A listed model is not enough: it must have completed a token. Each attempt is shown."""
    shown = []
    found, asked = await wait(
        [(503, {}), (200, "not JSON"), (200, {"data": 5}), listing(), listing(MODEL), (500, {}),
         listing(MODEL), (200, COMPLETION), (200, {"version": "0.33.0"})],
        progress=shown.append, log=lambda: "first\nlast", hardware="a GPU", source="vast",
    )  # fmt: skip
    assert (found.model, found.engine) == ("base", "vLLM 0.33.0")
    assert (found.hardware, found.source, found.api_key) == ("a GPU", "vast", "none")
    assert asked[7] == {"model": "base", "prompt": "Hi", "max_tokens": 1}
    foreign = "model server: an answer that is not the OpenAI API's | last"
    assert shown[0] == "model server: HTTP 503 | last"
    assert shown[1:] == [foreign, foreign, foreign, "model server: HTTP 500 | last"]


async def test_an_adapter_comes_before_the_model_it_changes():
    """vLLM lists a LoRA adapter with its parent: requests are meant for the adapter."""
    adapter = MODEL | {"id": "mine", "parent": "base"}
    found, _ = await wait([listing(MODEL, adapter), (200, COMPLETION), (404, {})])
    assert (found.model, found.engine) == ("mine", "")


async def test_a_wrong_key_is_told_at_once():
    """No time makes a wrong key right."""
    with pytest.raises(CourseError, match="refuses the API key"):
        await wait([(401, {})])
    with pytest.raises(CourseError, match="refuses the API key"):
        await wait([listing(MODEL), (401, {})])


async def test_time_is_up():
    """The last answer and the end of the log are in the error."""
    with pytest.raises(CourseError, match=r"did not become ready in 0 s \(HTTP 404\)\nthe log"):
        await wait([(404, {})], timeout_s=0.2, log=lambda: "the log")


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("CUDA out of memory", "more VRAM"),
        ("You are trying to access a gated repo", "accept its licence"),
        ("RepositoryNotFoundError: 401 Client Error", "name is wrong"),
        ("Cannot reach huggingface.co", "rent another one"),
        ("something else", "read the log"),
    ],
)
def test_a_server_that_gave_up_is_not_waited_for(words, remedy):
    """The log says that the server has ended: its words, and what to do about them."""
    log = f"{STARTS}\n{words}\n{ENDED} 1"
    with pytest.raises(CourseError, match=f"gave up:\n(?s:.*){words}") as caught:
        ready.endpoint("http://127.0.0.1:9/v1", log=lambda: log)
    assert remedy in caught.value.hint


def test_a_server_that_was_started_again_is_waited_for():
    """An end before the last start is history."""
    shown = []
    log = f"{STARTS}\n{ENDED} 1\n{STARTS}\nloading"
    with pytest.raises(CourseError, match=r"\(APIConnectionError\)"):
        ready.endpoint(
            "http://127.0.0.1:9/v1", timeout_s=0.1, poll_s=0.05, progress=shown.append,
            log=lambda: log,
        )  # fmt: skip
    assert shown[0] == "model server: APIConnectionError | loading"
