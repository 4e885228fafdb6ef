"""What goes over the wire: the prompt a server makes of tools, the raw text, the parsed call."""

from dataclasses import dataclass

import requests

from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.tools.schema import Tool, definitions


@dataclass(frozen=True, kw_only=True)
class Wire:
    """One request with tools, seen from the server's inside.

    Args:
        prompt: the text that the chat template made of messages and tools.
        raw: what the model wrote, before any parser.
        text: what the API gave as the message's ``content``.
        calls: what the tool parser made of it: ``(id, name, arguments as JSON text)`` each.
        finish: the finish reason.
    """

    prompt: str
    raw: str
    text: str
    calls: list[tuple[str, str, str]]
    finish: str


def wire(
    endpoint: Endpoint,
    messages: str | list[dict],
    tools: "list[Tool | dict]",
    *,
    tool_choice: str | dict = "auto",
    max_tokens: int = 128,
) -> Wire:
    """Ask greedily and show what passed between chat template, model and tool parser.

    The prompt is asked of the server: llama.cpp's ``/apply-template``, else vLLM's ``/tokenize``
    and ``/detokenize``. The same prompt then goes to ``/completions``, where no parser touches
    the answer.

    Args:
        endpoint: llama.cpp's server or vLLM.
        messages: a question, or chat messages.
        tools: tools or their definitions.
        tool_choice: as in the API.
        max_tokens: of the answer.

    Raises:
        CourseError: the server shows its prompts by neither way, or refuses a request.
    """
    chat = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    offer = {"messages": chat, "tools": definitions(tools)}
    prompt, tokens = _rendered(endpoint, offer)
    sampling = {"model": endpoint.model, "temperature": 0, "max_tokens": max_tokens}
    # The template has written the special tokens, and those of a call must not be left out.
    plain = {"skip_special_tokens": False, "add_special_tokens": False}
    raw = _post(
        endpoint, f"{endpoint.base_url}/completions", {**sampling, **plain, "prompt": tokens}
    )
    parsed = _post(
        endpoint,
        f"{endpoint.base_url}/chat/completions",
        {**sampling, **offer, "tool_choice": tool_choice},
    )
    try:
        choice = parsed["choices"][0]
        calls = [
            (call["id"], call["function"]["name"], call["function"]["arguments"])
            for call in choice["message"].get("tool_calls") or ()
        ]
        return Wire(
            prompt=prompt,
            raw=raw["choices"][0]["text"],
            text=choice["message"].get("content") or "",
            calls=calls,
            finish=choice["finish_reason"],
        )
    except (LookupError, TypeError, AttributeError):
        raise CourseError("the answer is not one of the OpenAI API") from None


def _rendered(endpoint: Endpoint, offer: dict) -> tuple[str, str | list[int]]:
    """Return the prompt as text, and in the form in which it can be sent unchanged."""
    try:
        prompt = _post(endpoint, f"{endpoint.origin}/apply-template", offer)["prompt"]
        return prompt, prompt
    except (CourseError, LookupError, TypeError):
        pass  # not llama.cpp
    try:
        offer = {**offer, "model": endpoint.model}
        tokens = _post(endpoint, f"{endpoint.origin}/tokenize", offer)["tokens"]
        back = {"model": endpoint.model, "tokens": tokens}
        return _post(endpoint, f"{endpoint.origin}/detokenize", back)["prompt"], tokens
    except (CourseError, LookupError, TypeError):
        raise CourseError(
            "this server does not show the prompt it makes",
            "llama.cpp's server (/apply-template) and vLLM (/tokenize) do; hosted APIs do not",
        ) from None


def _post(endpoint: Endpoint, url: str, body: dict) -> dict:
    headers = {"Authorization": f"Bearer {endpoint.api_key}"}
    try:
        answer = requests.post(url, json=body, headers=headers, timeout=120)
        if not answer.ok:
            raise CourseError(f"{url}: HTTP {answer.status_code}: {answer.text[:200]}")
        return answer.json()
    except (requests.RequestException, ValueError) as error:
        raise CourseError(f"{url} does not answer: {type(error).__name__}") from None
