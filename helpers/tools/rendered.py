"""What goes over the wire: the prompt a server makes of tools, the raw text, the parsed call."""

from dataclasses import dataclass
from typing import Any

from helpers.endpoint import Endpoint, hide_key
from helpers.errors import CourseError
from helpers.load.client.answer import Message, numbered
from helpers.tools.schema import Tool, definitions


@dataclass(frozen=True, kw_only=True)
class Wire:
    """One request with tools, seen from the server's inside.

    Args:
        prompt: the text that the chat template made of messages and tools.
        raw: what the model wrote, before any parser.
        calls: what the tool parser made of it: ``(id, name, arguments as JSON text)`` each.
    """

    prompt: str
    raw: str
    calls: list[tuple[str, str, str]]


def wire(endpoint: Endpoint, question: str, tools: list[Tool | dict]) -> Wire:
    """Ask greedily and show what passed between chat template, model and tool parser.

    The prompt is asked of the server: llama.cpp's ``/apply-template``, else vLLM's ``/tokenize``
    and ``/detokenize``. The same prompt then goes to ``/completions``, where no parser touches
    the answer.

    Args:
        endpoint: llama.cpp's server or vLLM.
        question: what the user says.
        tools: tools or their definitions.

    Raises:
        CourseError: the server shows its prompts by neither way, or refuses a request.
    """
    offer = {"messages": [{"role": "user", "content": question}], "tools": definitions(tools)}
    sampling = {"temperature": 0, "max_tokens": 128}
    try:
        prompt = tokens = _post(endpoint, "/apply-template", offer, "prompt")
    except CourseError:  # not llama.cpp
        tokens = _post(endpoint, "/tokenize", offer, "tokens")
        prompt = _post(endpoint, "/detokenize", {"tokens": tokens}, "prompt")
    # The template has written the special tokens, and those of a call must not be left out.
    plain = {"prompt": tokens, "skip_special_tokens": False, "add_special_tokens": False}
    raw = _post(endpoint, "/v1/completions", sampling | plain, "choices")[0]["text"]
    parsed = _post(endpoint, "/v1/chat/completions", sampling | offer, "choices")[0]
    calls = Message([numbered(parsed["message"])]).calls
    return Wire(prompt=prompt, raw=raw, calls=[(one.id, one.name, one.arguments) for one in calls])


def _post(endpoint: Endpoint, path: str, body: dict, field: str) -> Any:
    """Return one field of a server's answer."""
    try:
        answer = endpoint.call(path, {"model": endpoint.model, **body}, timeout_s=120)
        if answer.is_success:
            return answer.json()[field]
        problem = f"HTTP {answer.status_code}: {hide_key(answer.text[:200], endpoint.api_key)}"
    except (ConnectionError, ValueError, LookupError, TypeError) as error:
        problem = str(error)
    hint = "llama.cpp's server and vLLM show the prompts that they make; hosted APIs do not"
    raise CourseError(f"{path}: {problem}", hint)
