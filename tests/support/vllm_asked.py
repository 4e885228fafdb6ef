"""Requests to vLLM, and those it refuses: for its tests, and for what the notebooks say of it."""

import json

from helpers.load.client.reading import Answer, read
from helpers.load.client.transport import Transport

HELLO = [{"role": "user", "content": "Hi"}]
# What is sent too much or wrong, the status of vLLM's answer, and words in it.
REFUSALS = {
    "a prompt longer than the context": (
        {"messages": [{"role": "user", "content": "word " * 2000}]},
        (400, "maximum context length is 1024 tokens"),
    ),
    "an answer longer than the context": ({"max_tokens": 5000}, (400, "max_tokens=5000 cannot be")),
    "an unknown model": ({"model": "nope"}, (404, "The model `nope` does not exist")),
    "no message": ({"messages": []}, (400, "Provide at least one message")),
    "a temperature below zero": ({"temperature": -1}, (400, "temperature must be non-negative")),
    "tools where none are parsed": (
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        (400, "requires --enable-auto-tool-choice"),
    ),
}


async def ask(endpoint, body: bytes, path: str = "/chat/completions") -> Answer:
    """One request as the load generator makes it, and what it makes of the answer."""
    headers = {"Authorization": f"Bearer {endpoint.api_key}"}
    transport = Transport(endpoint.base_url, headers, 60)
    exchange = await transport.fetch(transport.prepare(path, body))
    await transport.close()
    return read(exchange)


def plain(**changed) -> bytes:
    """A small streaming chat request, some of its fields changed."""
    return json.dumps({"model": "smollm2", "messages": HELLO, "stream": True} | changed).encode()
