"""Waiting for a model: what is asked, what is shown, and when it is no use to go on."""

import asyncio
import json

import pytest
from aiohttp import web
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
    with pytest.raises(CourseError, match=r"did not become ready in 0 s \(HTTP 503\)\nthe log"):
        await wait([(503, {})], timeout_s=0.2, log=lambda: "the log")


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("CUDA out of memory", "more VRAM"),
        ("You are trying to access a gated repo", "accept its licence"),
        ("RepositoryNotFoundError: 401 Client Error", "name is wrong"),
        ("Repository Not Found for url: X. If it is a private or gated repo, ...", "name is wrong"),
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
    with pytest.raises(CourseError, match=r"\(.*Connection refused\)"):
        ready.endpoint(
            "http://127.0.0.1:9/v1", timeout_s=0.1, poll_s=0.05, progress=shown.append,
            log=lambda: log,
        )  # fmt: skip
    assert shown[0].endswith("Connection refused | loading")


# -- servers that answer by path -----------------------------------------------------------


@pytest.fixture
async def serving():
    """Starts a server with an answer (status, JSON, fields of the head) for some paths."""
    runners = []

    async def start(answers, **options):
        async def answer(request):
            key = (request.method, request.path)
            status, data, *head = answers.get(key, answers.get("*", (404, {})))
            if callable(data):
                status, data = data(await request.json())
            return web.json_response(data, status=status, headers=dict(head))

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runners.append(web.AppRunner(app))
        await runners[-1].setup()
        await web.TCPSite(runners[-1], "127.0.0.1", 0, **options).start()
        return f"{'https' if options else 'http'}://127.0.0.1:{runners[-1].addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


async def told(url, **options):
    """What is said of a server, for which nobody would wait so long."""
    with pytest.raises(CourseError) as caught:
        await asyncio.to_thread(ready.endpoint, url, timeout_s=60, poll_s=60, **options)
    return str(caught.value)


KEY = "sk-planted-0123456789"
LISTED = {("GET", "/v1/models"): listing(MODEL)}
AWAY = "https://other.example/v1/models?from=here"


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"*": (401, {"error": KEY})}, "refuses the API key (HTTP 401)"),
        ({"*": (403, {"error": KEY})}, "refuses the API key (HTTP 403)"),
        ({"*": (307, {}, ("Location", "/new/v1/models"))}, "base_url='{url}/new/v1'"),
        ({"*": (301, {}, ("Location", AWAY))}, "sends its clients on to https://other.example/v1 "),
        (
            {"*": (400, {"error": f"{KEY[:-4]} is odd"})},
            'lists no models: HTTP 400 {"error": "*** is',
        ),
        ({}, "no OpenAI-compatible API"),
        (LISTED | {"*": (400, {"error": "no text"})}, "the model base completes no text: HTTP 400"),
    ],
)
async def test_what_no_waiting_mends_is_told_at_once(serving, answers, words):
    """With what to do; and no key is in it, however the server repeats it."""
    url = await serving(answers)
    said = await told(f"{url}/v1", api_key=KEY)
    assert words.format(url=url) in said if "{url}" in words else words in said
    assert KEY[:10] not in said and "try: " in said


async def test_the_version_may_be_forgotten_and_a_slash_too_many(serving):
    """The root of the server is named with the address that was meant; a slash is no matter."""
    url = await serving(LISTED | {("POST", "/v1/completions"): (200, COMPLETION)})
    assert f"try: base_url='{url}/v1'" in await told(url)
    found = await asyncio.to_thread(ready.endpoint, f"{url}/v1/")
    assert (found.base_url, found.model) == (f"{url}/v1", "base")


async def test_a_chat_is_a_token_too(serving):
    """Servers without ``/completions``, and those that know ``max_completion_tokens`` alone."""

    def chat(body):
        return (400, {}) if "max_tokens" in body else (200, COMPLETION)

    url = await serving(LISTED | {("POST", "/v1/chat/completions"): (0, chat)})
    assert (await asyncio.to_thread(ready.endpoint, f"{url}/v1")).model == "base"


async def test_an_embedding_model_may_be_listed_first(serving):
    """Its refusal names the others, and ``model=`` chooses one of them."""

    def complete(body):
        return (400, {"error": "no text"}) if body["model"] == "embed" else (200, COMPLETION)

    models = listing(MODEL | {"id": "embed"}, MODEL)
    url = await serving({("GET", "/v1/models"): models, ("POST", "/v1/completions"): (0, complete)})
    assert "there are embed, base" in await told(f"{url}/v1")
    assert (await asyncio.to_thread(ready.endpoint, f"{url}/v1", model="base")).model == "base"


async def test_a_certificate_that_nobody_vouches_for(serving, tls):
    """Told at once with the way out, which works; a server without one is told as well."""
    url = await serving(LISTED | {("POST", "/v1/completions"): (200, COMPLETION)}, ssl_context=tls)
    assert (await asyncio.to_thread(ready.endpoint, f"{url}/v1")).model == "base"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SSL_CERT_FILE")
        assert "SSL_CERT_FILE" in await told(f"{url}/v1")
    plain = await serving({})
    assert "write http://" in await told(plain.replace("http:", "https:"))
