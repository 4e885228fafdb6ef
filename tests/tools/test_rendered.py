"""Prompt, raw text and parsed call: of llama.cpp and vLLM, and of servers that show neither."""

import json

import pytest
from support.scripted import Scripted, call, wants

from helpers import tools
from helpers.errors import CourseError


@tools.tool
def double(number: int) -> int:
    """Twice a number."""
    return 2 * number


class Server(Scripted):
    """An engine; ``shown`` is what it answers, by the fields of the request."""

    def __init__(self, shown):
        super().__init__(wants(call("double", {"number": 2})))
        self.shown = shown

    def reply(self, body):
        if "max_tokens" not in body:
            found = self.shown.get(tuple(body))
            return (404, "") if found is None else (200, json.dumps(found))
        if "messages" in body:
            return super().reply(body)
        self.asked.append(body)
        return 200, json.dumps({"choices": [{"text": "<tool_call>..."}]})


PROMPT = {"prompt": "<tools>double</tools>"}
LLAMA = {("model", "messages", "tools"): PROMPT}
VLLM = {("model", "messages", "tools"): {"tokens": [1, 2]}, ("model", "tokens"): PROMPT}


@pytest.mark.parametrize(("shown", "prompt"), [(LLAMA, "<tools>double</tools>"), (VLLM, [1, 2])])
def test_the_same_prompt_is_shown_and_sent(shown, prompt):
    """The raw text would be another one's, if the prompt were not the one that was shown."""
    with Server(shown) as server:
        seen = tools.wire(server.endpoint, "Twice 2?", [double])
    assert seen.prompt == "<tools>double</tools>" and seen.raw == "<tool_call>..."
    assert seen.calls == [("call00001", "double", '{"number": 2}')]
    assert server.asked[0]["prompt"] == prompt
    assert server.asked[1]["tools"] == [double.definition()]


@pytest.mark.parametrize("shown", [{}, {("model", "messages", "tools"): {"error": "what?"}}])
def test_a_server_that_shows_no_prompt_is_a_sentence(shown):
    """A hosted API; some answer everything with 200."""
    with Server(shown) as server, pytest.raises(CourseError, match="hosted APIs do not"):
        tools.wire(server.endpoint, "Twice 2?", [double])
