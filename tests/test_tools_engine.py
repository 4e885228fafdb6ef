"""The loop against a model that really calls: the rehearsal's, with its adapter."""

import pytest

from helpers import guard, models, serving, ssh, tools


@pytest.fixture(scope="module")
def caller(provider, settings):
    spec = models.spec(serving.MISTRAL_AWQ, settings)
    machine = guard.rent(provider, spec, "tools", settings)
    with ssh.tunnel(machine, settings) as tunnel:
        yield serving.endpoint(tunnel.base_url)
    guard.destroy(provider, machine.id)


@tools.tool
def track_parcel(number: str) -> dict:
    """Find out where a parcel is.

    Args:
        number: Parcel number
    """
    return {"status": {"48213": "in Lyon", "7": "lost"}[number]}


@tools.tool
def feed_pet(pet: str, grams: int) -> str:
    """Give an animal food."""
    return f"{pet} ate {grams} g"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_is_made_run_and_answered(caller, stream):
    """Template, adapter, parser and loop fit together only if a call comes out as a call."""
    talk = await tools.run_tools(
        caller, "Where is parcel 48213?", [track_parcel, feed_pet], stream=stream
    )
    assert [step.what for step in talk.calls] == ['track_parcel({"number": "48213"})']
    assert not talk.problems
    assert [step.phase for step in talk.steps][-3:] == ["deciding", "executing", "answering"]
    assert talk.answer


@pytest.mark.parametrize("stream", [False, True])
async def test_no_call_where_none_belongs(caller, stream):
    """A model that calls for a greeting costs two answers instead of one."""
    talk = await tools.run_tools(caller, "Good morning!", [track_parcel, feed_pet], stream=stream)
    assert not talk.calls
    assert talk.answer


def test_what_goes_over_the_wire(caller):
    """The raw text and the parsed call are shown side by side: they must be of one answer."""
    seen = tools.wire(caller, "Give Rex 40 grams of food", [track_parcel, feed_pet])
    assert "feed_pet: Give an animal food." in seen.prompt
    assert seen.raw.startswith("<tool_call>")
    assert [call[1] for call in seen.calls] == ["feed_pet"]
