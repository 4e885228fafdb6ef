"""The model on strings speaks the protocol well enough for the plain client."""

import json

import pytest

from helpers import tools


@pytest.mark.parametrize("stream", [False, True])
async def test_it_answers_what_it_was_told(stream):
    """Whole or streamed, one answer for each request and the last one for ever."""

    @tools.tool
    def double(number: int) -> int:
        return 2 * number

    wish = tools.calls(("double", {"number": 4}), ("double", {"number": 5}))
    with tools.Puppet(wish, tools.says("8, 10")) as puppet:
        for _ in range(2):
            talk = await tools.run_tools(puppet.endpoint, "Hi", [double], stream=stream)
            assert talk.answer == "8, 10"
    assert len(puppet.asked) == 3 and len(talk.calls) == 0
    results = [m["content"] for m in puppet.asked[1]["messages"] if m["role"] == "tool"]
    assert results == ["8", "10"]


def test_the_plain_client_reads_it():
    """The reason says that there are calls, as a server's does."""
    chat = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    with tools.Puppet(tools.calls(("f", {"a": 1}))) as puppet, puppet.endpoint.client() as client:
        choice = client.chat.completions.create(**chat).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert json.loads(choice.message.tool_calls[0].function.arguments) == {"a": 1}
