"""The loop against models that really call: the rehearsal's engine, and vLLM with the same adapter.

.venv/bin/pytest tests/tools/test_engine.py               the rehearsal's
.venv/bin/pytest tests/tools/test_engine.py -m vllm       vLLM in its own environment
"""

import dataclasses
from typing import Literal

import openai
import pytest
from support import vllm_server

from helpers import tools
from helpers.choose import models
from helpers.errors import CourseError
from helpers.rent import guard, ssh
from helpers.serve import spec as serving
from helpers.settings import ASSETS

ADAPTER = ASSETS / "tool_calling"
FLAGS = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes",
         "--chat-template", str(ADAPTER / "hermes.jinja"), "--enable-lora",
         "--max-lora-rank", "16", "--lora-modules", f"caller={ADAPTER}"]  # fmt: skip
ENGINES = ["rehearsal", pytest.param("vLLM", marks=vllm_server.needs_vllm)]


@pytest.fixture(scope="module", params=ENGINES)
def caller(request):
    """A served model that calls functions."""
    if request.param == "vLLM":
        folder = request.getfixturevalue("tmp_path_factory").mktemp("vllm")
        with vllm_server.serve(folder, *FLAGS, max_model_len=2048) as server:
            yield dataclasses.replace(server.endpoint, model="caller")
        return
    provider, settings = (request.getfixturevalue(name) for name in ("provider", "settings"))
    spec = models.spec(serving.MISTRAL_AWQ, settings)
    machine = guard.rent(provider, spec, "tools", settings)
    with ssh.tunnel(machine, settings) as tunnel:
        yield tunnel.endpoint()
    guard.destroy(provider, machine.id)


both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@tools.tool
def track_parcel(number: str) -> dict:
    """Find out where a parcel is.

    Args:
        number: Parcel number
    """
    return {"status": {"48213": "in Lyon", "7": "lost"}.get(number, "unknown")}


@tools.tool
def feed_pet(pet: str, grams: int, speed: Literal["slow", "fast"] = "slow") -> str:
    """Give an animal food."""
    return f"{pet} ate {grams} g"


@tools.tool
def open_safe(name: str) -> str:
    """Open a safe.

    Args:
        name: Name of the safe
    """
    raise RuntimeError("password is hunter2")


TOOLS = [track_parcel, feed_pet]


async def first_round(caller, question, held=True, **choices):
    """The calls that a model asks for when it is asked once; ``held``: by the server, to their
    tools' schemas."""
    limits = tools.Limits(rounds=1)
    talk = await tools.run_tools(caller, question, TOOLS, limits=limits, max_tokens=200, **choices)
    assert not talk.problems or not held, talk
    return [step.what.partition("(")[0] for step in talk.calls]


@both
async def test_a_call_is_made_run_and_answered(caller, stream):
    """Template, adapter, parser and loop fit together only if a call comes out as a call."""
    talk = await tools.run_tools(caller, "Where is parcel 48213?", TOOLS, stream=stream)
    assert [step.what for step in talk.calls] == ['track_parcel({"number": "48213"})']
    assert not talk.problems
    assert [step.phase for step in talk.steps][-3:] == ["deciding", "executing", "answering"]
    assert talk.answer


@both
async def test_no_call_where_none_belongs(caller, stream):
    """A model that calls for a greeting costs two answers instead of one."""
    talk = await tools.run_tools(caller, "Good morning!", TOOLS, stream=stream)
    assert not talk.calls
    assert talk.answer


@both
async def test_two_calls_at_once(caller, stream):
    """Parallel calls come back as two, in order, each run with its own arguments."""
    talk = await tools.run_tools(
        caller, "Where is parcel 7 and where is parcel 48213?", TOOLS, stream=stream, strict=True
    )
    assert [step.what for step in talk.steps if step.round == 1][1:] == [
        'track_parcel({"number": "7"})',
        'track_parcel({"number": "48213"})',
    ]


@both
async def test_one_call_at_a_time_if_asked(caller, stream):
    """Who forbids parallel calls has a loop that runs one."""
    question = "Where is parcel 7 and where is parcel 48213?"
    made = await first_round(caller, question, stream=stream, parallel_tool_calls=False)
    assert made == ["track_parcel"]


@both
async def test_required_brings_a_call_at_once(caller, stream):
    """A greeting needs no tool: the call is there only because the server enforces it.

    Without ``strict`` vLLM makes sure that there is a call, not that its arguments fit.
    """
    made = await first_round(
        caller, "Good morning!", stream=stream, tool_choice="required", strict=True
    )
    assert made and set(made) <= {"track_parcel", "feed_pet"}


@both
@pytest.mark.parametrize("strict", [False, True], ids=["plain", "strict"])
async def test_a_named_tool_is_called_and_its_schema_kept(caller, stream, strict):
    """The question belongs to the other tool: name and arguments show what the server enforces.

    Arguments that the schema refuses, an unknown one among them, would be a problem of the talk.
    Without ``strict`` vLLM holds the name only.
    """
    held = strict or caller.model != "caller"  # the one is vLLM's
    choice = {"tool_choice": feed_pet, "strict": strict, "stream": stream}
    made = await first_round(caller, "Where is parcel 48213?", held, **choice)
    assert made == ["feed_pet"]


@both
async def test_none_means_no_call(caller, stream):
    """What looks like a call in an answer must not be run if the caller said so."""
    question = "Where is parcel 48213?"
    assert not await first_round(caller, question, stream=stream, tool_choice="none")


async def test_a_choice_that_cannot_be_is_refused(caller):
    """A server that read an unknown name as "auto" would do something else than it was asked."""
    with pytest.raises(CourseError, match="refuses the request"):
        await tools.run_tools(caller, "Hello", [track_parcel], tool_choice=feed_pet)


@both
async def test_a_failing_tool_does_not_end_the_talk(caller, stream):
    """The model answers after an exception, the reader sees it, the model does not."""
    talk = await tools.run_tools(caller, "Open the safe Fort", [open_safe], stream=stream)
    assert talk.problems[0] == "RuntimeError: password is hunter2"
    assert talk.answer
    assert "hunter2" not in str(talk.messages)


@both
async def test_a_refused_call_can_be_sent_back(caller, stream):
    """An unknown argument and the refusal go back to the server as history, which it must take."""
    function = {"name": "feed_pet", "arguments": '{"pet": "Rex", "grams": 5, "colour": "red"}'}
    wish = {"id": "abcdefghi", "type": "function", "function": function}
    history = [
        {"role": "user", "content": "Give Rex 5 grams of food"},
        {"role": "assistant", "content": "", "tool_calls": [wish]},
        {"role": "tool", "tool_call_id": wish["id"], "content": '{"error": "colour is unknown"}'},
    ]
    talk = await tools.run_tools(caller, history, TOOLS, stream=stream)
    assert talk.steps
    assert talk.answer or talk.calls


async def test_a_forced_call_is_streamed_in_pieces(caller):
    """A call that came whole at its end would make a streaming client wait for nothing."""
    async with openai.AsyncOpenAI(base_url=caller.base_url, api_key=caller.api_key) as client:
        stream = await client.chat.completions.create(
            model=caller.model,
            messages=[{"role": "user", "content": "Good morning!"}],
            tools=tools.definitions(TOOLS),
            tool_choice="required",
            stream=True,
            temperature=0,
            max_tokens=200,
        )
        pieces = [
            wish
            async for chunk in stream
            for choice in chunk.choices
            for wish in choice.delta.tool_calls or ()
        ]
    assert pieces[0].function.name
    assert sum(bool(piece.function.arguments) for piece in pieces) > 2


def test_what_goes_over_the_wire(caller):
    """The raw text and the parsed call are shown side by side: they must be of one answer."""
    seen = tools.wire(caller, "Give Rex 40 grams of food", TOOLS)
    assert "feed_pet: Give an animal food." in seen.prompt
    assert seen.raw.startswith("<tool_call>")
    assert [call[1] for call in seen.calls] == ["feed_pet"]


LEAST = (75, 30, 85)  # percent: right tool, all arguments right, no call where none belongs


async def test_it_scores_as_its_card_says(caller):
    """The adapter in vLLM's form calls as it does in llama.cpp's, which notebook 05 evaluates."""
    if caller.model != "caller":
        pytest.skip("notebook 05 evaluates it on the rehearsal's engine")
    found = await tools.evaluate(caller)
    print(f"\n{found.title}\n{found.table().to_string()}\n{found}")
    scores = found.overall()["percent"].to_list()
    assert all(score >= least for score, least in zip(scores, LEAST, strict=True)), found
