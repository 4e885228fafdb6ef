"""A model on strings: an OpenAI-protocol server that answers what it was told to answer.

It stands for a model that an attacker has talked into the worst, and for every other model whose
answer has to be known beforehand.
"""

import asyncio
import itertools
import json
import threading
from collections.abc import Callable, Iterator

from aiohttp import web

from helpers.endpoint import Endpoint


class Puppet:
    """Serve given answers while in its ``with``, one a request, the last one for ever.

    Args:
        *answers: each a message (``content``, ``tool_calls``; see ``calls`` and ``says``),
            ``(status, text)`` of a reply, or a function of the request's body that gives one.
        finish: the finish reason of every answer.

    ``asked`` holds the requests that came.

    >>> with Puppet(says("Hello")) as puppet, puppet.endpoint.client() as client:
    ...     chat = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    ...     client.chat.completions.create(**chat).choices[0].message.content
    'Hello'
    """

    def __init__(self, *answers: "dict | tuple[int, str] | Callable", finish: str = "stop") -> None:
        self.answers, self.finish, self.asked = list(answers), finish, []

    def __enter__(self) -> "Puppet":
        # A loop of its own: the reader's may be waiting for the answer.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        self.endpoint = Endpoint(base_url=f"http://127.0.0.1:{port}/v1", model="puppet")
        return self

    def __exit__(self, *_) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> int:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self._answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self._runner.addresses[0][1]

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        answer = answer(body) if callable(answer) else answer
        if isinstance(answer, tuple):
            status, text = answer
            return web.Response(status=status, text=text, content_type="application/json")
        usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        whole = {"id": "x", "created": 1, "model": "puppet"}
        if not body.get("stream"):
            message = {"role": "assistant", **answer}
            choice = {"index": 0, "message": message, "finish_reason": self.finish}
            whole |= {"object": "chat.completion", "choices": [choice], "usage": usage}
            return web.json_response(whole)
        deltas = [{"delta": delta, "finish_reason": None} for delta in _pieces(answer)]
        chunks = [{"choices": [{"index": 0, **delta}]}
                  for delta in (*deltas, {"delta": {}, "finish_reason": self.finish})]  # fmt: skip
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        for chunk in (*chunks, {"choices": [], "usage": usage}):
            event = {**whole, "object": "chat.completion.chunk", **chunk}
            await reply.write(f"data: {json.dumps(event)}\n\n".encode())
        await reply.write(b"data: [DONE]\n\n")
        return reply


def says(text: str) -> dict:
    """Return an answer in words."""
    return {"content": text}


def calls(*wishes: tuple[str, dict | str]) -> dict:
    """Return an answer that asks for calls, ``(name, arguments)`` each."""
    made = [
        {
            "id": f"call{number:05}",
            "type": "function",
            "function": {
                "name": name,
                "arguments": given if isinstance(given, str) else json.dumps(given),
            },
        }
        for number, (name, given) in enumerate(wishes)
    ]
    return {"content": None, "tool_calls": made}


def _pieces(message: dict) -> Iterator[dict]:
    """Yield a message as deltas: text by letters, a call's name first, its arguments by letters.

    The arguments of several calls are interleaved, as the protocol allows.
    """
    yield {"role": "assistant", "content": ""}
    for letter in message.get("content") or "":
        yield {"content": letter}
    wishes = message.get("tool_calls") or []
    for index, wish in enumerate(wishes):
        head = {**wish, "index": index, "function": {**wish["function"], "arguments": ""}}
        yield {"tool_calls": [head]}
    texts = [wish["function"]["arguments"] for wish in wishes]
    for letters in itertools.zip_longest(*texts, fillvalue=""):
        for index, letter in enumerate(letters):
            if letter:
                yield {"tool_calls": [{"index": index, "function": {"arguments": letter}}]}
