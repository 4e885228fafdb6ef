"""The client half of the course against real vLLM: what it answers, refuses, counts and forgets.

``tests/benchmarks/vllm_seen.py`` writes down what is seen here for the notebooks.
"""

import json
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from support.vllm_asked import HELLO, REFUSALS, ask, plain
from support.vllm_server import needs_vllm
from support.waiting import eventually

from helpers import load, serve, tools
from helpers.errors import CourseError
from helpers.load.metrics import NAMES
from helpers.settings import ASSETS, PROJECT

pytestmark = needs_vllm


def wait_idle(endpoint, within_s: float = 10) -> float:
    """Wait until vLLM says that nothing runs; returns how long that took, in seconds."""
    began = time.monotonic()
    while True:
        now = load.server_metrics(endpoint)
        took = time.monotonic() - began
        if now["running"] == now["waiting"] == 0:
            return took
        assert took < within_s, f"{now['running']} still run after {took:.1f} s"
        time.sleep(0.05)


def reading(endpoint, running: int):
    """The metrics as soon as so many requests run: vLLM counts some steps after it answers."""

    def now():
        found = load.server_metrics(endpoint)
        return found if found["running"] == running else None

    return eventually(now)


# -- answers ---------------------------------------------------------------------------------


def test_readiness_waits_while_the_model_loads(vllm):
    """On a rented machine this takes minutes: the log is shown until the first answer comes."""
    assert len(vllm.waited) > 5
    assert all("Connection refused | " in line for line in vllm.waited), vllm.waited
    assert any("EngineCore" in line for line in vllm.waited)
    assert vllm.endpoint.title == "smollm2, vLLM 0.32.0 on CPU"


def test_a_stream_is_the_answer_in_pieces(vllm):
    """Completions, chat and its stream answer, and a piece is a token: what TTFT and ITL count."""
    client, model = vllm.endpoint.client(), vllm.endpoint.model
    say = {"prompt": "One, two, three,", "max_tokens": 8, "extra_body": {"ignore_eos": True}}
    text = client.completions.create(model=model, **say)
    assert text.usage.completion_tokens == 8 and text.choices[0].text
    same = {"model": model, "messages": HELLO, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**same)
    chunks = list(client.chat.completions.create(**same, stream=True))
    pieces = [c.choices[0].delta.content for c in chunks if c.choices[0].delta.content]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len(pieces) == whole.usage.completion_tokens == 12


async def test_answers_have_the_length_that_was_asked_for(vllm):
    """`ignore_eos` and `min_tokens` keep a fast model from looking fast by saying little."""
    free, *exact = [
        await ask(vllm.endpoint, plain(max_tokens=100, temperature=0, **how, **USAGE))
        for how in ({}, {"ignore_eos": True}, {"min_tokens": 100})
    ]
    assert free.finish == "stop" and free.output_tokens < 100
    for reply in exact:
        assert (reply.finish, reply.output_tokens) == ("length", 100)
        # Fewer pieces than tokens: the end mark, passed over, has no text. So usage is counted.
        assert 50 < len(reply.token_times) <= 100


USAGE = {"stream_options": {"include_usage": True}}


# -- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize("what", REFUSALS)
async def test_a_refusal_keeps_its_reason(vllm, what):
    """Who loads a server wrongly reads why, in vLLM's words, and not a bare number."""
    changed, (status, words) = REFUSALS[what]
    reply = await ask(vllm.endpoint, plain(**changed))
    assert reply.cause == f"http {status}"
    assert words in reply.error


async def test_broken_json_and_unknown_routes(vllm):
    """Two more shapes of error: a validator's, and the web framework's own."""
    reply = await ask(vllm.endpoint, b"{nope")
    assert (reply.cause, "JSON decode error" in reply.error) == ("http 400", True)
    reply = await ask(vllm.endpoint, plain(), "/nope")
    assert (reply.cause, reply.error) == ("http 404", '{"detail":"Not Found"}')


async def test_a_wrong_key_is_told_as_one(vllm, tmp_path):
    """The wait, the function-calling loop and a load each name it instead of going on."""
    stranger = replace(vllm.endpoint, api_key="wrong")
    with pytest.raises(CourseError, match="refuses the API key"):
        serve.endpoint(stranger.base_url, api_key="wrong", timeout_s=30)
    with pytest.raises(CourseError, match="refuses the API key"):
        await tools.run_tools(stranger, "Hi", [])
    run = await load.run(
        stranger,
        load.Synthetic(input_tokens=8, output_tokens=8),
        load.ClosedLoop(users=1),
        requests=1,
        path=tmp_path / "run.jsonl",
        progress=False,
    )
    assert [record.cause for record in run.records] == ["http 401"]
    assert "1 failed" in repr(run)


def test_a_wrong_address_is_not_waited_for(vllm):
    """A base URL without /v1 answers, and never with a model: the right one is in the error."""
    with pytest.raises(CourseError, match="no OpenAI-compatible API") as told:
        serve.endpoint(vllm.endpoint.origin, api_key=vllm.endpoint.api_key)
    assert vllm.endpoint.base_url in told.value.hint


# -- clients that leave ----------------------------------------------------------------------

LOADING = """
import asyncio, sys
from helpers import load
from helpers.endpoint import Endpoint
endpoint = Endpoint(base_url=sys.argv[1], model="smollm2", api_key=sys.argv[2])
work = load.Synthetic(input_tokens=8, output_tokens=900)
users = load.ClosedLoop(users=4)
told = {"path": sys.argv[3], "progress": False, "allow_partial": True}
run = asyncio.run(load.run(endpoint, work, users, requests=4, **told))
print(run.interrupted, [record.cause for record in run.records])
"""


def test_an_answer_nobody_reads_is_not_generated(vllm):
    """A customer who closes the window must not hold a place in the batch."""
    client = vllm.endpoint.client()
    answer = client.chat.completions.create(
        model="smollm2",
        messages=HELLO,
        max_tokens=900,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(iter(answer))
    assert reading(vllm.endpoint, running=1)
    answer.close()
    wait_idle(vllm.endpoint)


async def test_a_request_past_its_time_limit_is_taken_back(vllm, tmp_path):
    """`timeout_s` ends the request at the server too: what follows is not measured behind it."""
    run = await load.run(
        vllm.endpoint,
        load.Synthetic(input_tokens=8, output_tokens=900),
        load.ClosedLoop(users=3),
        requests=3,
        timeout_s=2,
        path=tmp_path / "run.jsonl",
        progress=False,
    )
    assert [record.cause for record in run.records] == ["timeout"] * 3
    assert all(0 < len(record.token_us) < 900 for record in run.records)
    wait_idle(vllm.endpoint)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_load_stops_at_the_server(vllm, tmp_path, number):
    """Ctrl-C, or a kernel that is killed: the requests of its generator end within seconds."""
    endpoint = vllm.endpoint
    before = load.server_metrics(endpoint)["output_tokens_total"]
    words = [endpoint.base_url, endpoint.api_key, tmp_path / "run.jsonl"]
    with subprocess.Popen(
        [sys.executable, "-c", LOADING, *words], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    ) as process:
        while load.server_metrics(endpoint)["running"] < 4:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        said = process.communicate(timeout=30)[0]
    wait_idle(endpoint)
    assert load.server_metrics(endpoint)["output_tokens_total"] - before < 4 * 900
    if number == signal.SIGINT:
        assert said == f"True {['interrupted'] * 4}\n"


# -- the server's own figures ----------------------------------------------------------------


def test_every_figure_of_the_metrics_is_there(vllm):
    """A name that vLLM changed would silently be a missing column in the reader's run."""
    before = load.server_metrics(vllm.endpoint)
    assert before.keys() == NAMES.keys()
    answer = vllm.endpoint.client().chat.completions.create(
        model="smollm2",
        messages=HELLO,
        max_tokens=900,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    pieces = iter(answer)
    next(pieces)
    during = reading(vllm.endpoint, running=1)
    assert during and during["waiting"] == 0 and 0 < during["kv_cache_usage"] < 1
    for _ in zip(pieces, range(100), strict=False):
        pass
    answer.close()
    wait_idle(vllm.endpoint)
    after = load.server_metrics(vllm.endpoint)
    assert after["output_tokens_total"] - before["output_tokens_total"] >= 100
    assert after["ttft_count"] == before["ttft_count"] + 1


async def test_a_shared_prefix_is_read_once(vllm, tmp_path):
    """The prefix cache shows in the server's counters, in our records, and in the time it saves."""
    seed = int(time.time())  # on a server that runs already, too, the first one is new
    work = load.Synthetic(input_tokens=16, output_tokens=4, shared_prefix_tokens=600, seed=seed)
    run = await load.run(
        vllm.endpoint,
        work,
        load.ClosedLoop(users=1),
        requests=5,
        path=tmp_path / "run.jsonl",
        progress=False,
    )
    first, *later = run.records
    assert first.cached_tokens == 0
    assert all(512 <= record.cached_tokens < record.prompt_tokens for record in later), later
    found = run.samples[-1]["prefix_cache_hits"] - run.samples[0]["prefix_cache_hits"]
    assert found == sum(record.cached_tokens for record in later)
    assert statistics.median(record.ttft_s for record in later) < first.ttft_s


async def test_what_notebooks_print_is_what_this_vllm_does(vllm):
    """A newer vLLM in the environment means: run tests/benchmarks/vllm_seen.py again."""
    seen = json.loads((ASSETS / "vllm_seen.json").read_text())
    assert seen["engine"] == vllm.endpoint.engine
    for refusal in seen["refusals"]:
        if refusal["asked"] in REFUSALS:
            reply = await ask(vllm.endpoint, plain(**REFUSALS[refusal["asked"]][0]))
            assert (reply.cause, reply.error) == (f"http {refusal['status']}", refusal["answer"])
    assert seen["metrics"].keys() == load.server_metrics(vllm.endpoint).keys()
