"""``tool_choice`` as vLLM understands it, in front of llama.cpp's server.

llama.cpp holds a call to its tool's schema once the model has begun one. It does not make the model
begin: with ``required`` its grammar lets any text stand before the call, until ``max_tokens`` cuts
it off, and it reads a named function as ``auto``. So a request that forces a call gets the first
line of a call as the start of the model's answer; from there llama.cpp's own grammar leads on, and
its own parser reads the call, whole or streamed. Everything else passes as it came.

What differs from vLLM: a named function is the only one that the model is shown, and the line
counts as prompt tokens.
"""

import json
from pathlib import Path
from typing import Any

from aiohttp import web

from helpers.rehearsal.web_api import forward

CALL = "<tool_call>\n"


def forced(body: dict[str, Any]) -> dict[str, Any]:
    """Return the body of a chat request with its choice of tools in llama.cpp's terms.

    Args:
        body: as a client sent it: ``tools``, ``tool_choice`` and ``parallel_tool_calls`` count.

    Raises:
        ValueError: the choice demands a tool that is not there.

    >>> tools = [{"type": "function", "function": {"name": "ping"}}]
    >>> ping = {"type": "function", "function": {"name": "ping"}}
    >>> made = forced({"messages": [], "tools": tools, "tool_choice": ping})
    >>> made["messages"][-1], made["tool_choice"]
    ({'role': 'assistant', 'content': '<tool_call>\\n'}, 'required')
    """
    choice = body.get("tool_choice") or "auto"
    tools = body.get("tools") or []
    made = dict(body)
    if isinstance(choice, dict):
        name = choice["function"]["name"]
        tools = made["tools"] = [tool for tool in tools if tool["function"]["name"] == name]
    if isinstance(choice, dict) or choice == "required":
        if not tools:
            raise ValueError(f"there is no tool for the tool_choice {choice!r}")
        made["messages"] = [*body["messages"], {"role": "assistant", "content": CALL}]
        made["tool_choice"] = "required"
    if tools and (isinstance(choice, dict) or body.get("parallel_tool_calls") is False):
        stop = body.get("stop") or []
        made["stop"] = [*([stop] if isinstance(stop, str) else stop), f"\n{CALL.strip()}"]
    return made


def serve(socket: Path, engine: Path) -> None:
    """Answer on a Unix socket for as long as this process lives.

    Args:
        socket: where clients come.
        engine: where llama.cpp's server listens.
    """

    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if request.path.endswith("/chat/completions"):
            try:
                body = json.dumps(forced(json.loads(body))).encode()
            except (LookupError, TypeError, AttributeError, ValueError) as error:
                told = {"message": f"cannot be read: {error}", "type": "BadRequestError"}
                return web.json_response({"error": told | {"code": 400}}, status=400)
        return await forward(request, engine, request.path.removeprefix("/"), body)

    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", handle)
    # A client that goes away takes its request along, as it does without this in between.
    web.run_app(
        app, path=str(socket), print=None, access_log=None,
        handle_signals=False, handler_cancellation=True,
    )  # fmt: skip
