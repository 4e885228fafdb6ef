"""An OpenAI-protocol server whose answers are given."""

import itertools
import json

from aiohttp import web

from helpers.endpoint import Endpoint


class Scripted:
    """An OpenAI-protocol server whose answers are given; it keeps what it was asked.

    Each answer is a message (``content``, ``tool_calls``), ``(status, text)`` of a reply, or a
    function of the request that gives one of them.
    """

    def __init__(self, *answers, finish="stop"):
        self.answers, self.finish, self.asked = list(answers), finish, []

    async def _answer(self, request):
        body = await request.json()
        self.asked.append(body)
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        answer = answer(body) if callable(answer) else answer
        if isinstance(answer, tuple):
            status, text = answer
            return web.Response(status=status, text=text, content_type="application/json")
        usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", **answer},
                      "finish_reason": self.finish}  # fmt: skip
            whole = {"id": "x", "object": "chat.completion", "created": 1, "model": "m"}
            return web.json_response({**whole, "choices": [choice], "usage": usage})
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        for delta in pieces(answer):
            chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m",
                     "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}  # fmt: skip
            await reply.write(f"data: {json.dumps(chunk)}\n\n".encode())
        last = {"choices": [{"index": 0, "delta": {}, "finish_reason": self.finish}]}
        for chunk in (last, {"choices": [], "usage": usage}):
            await reply.write(f"data: {json.dumps(chunk)}\n\n".encode())
        await reply.write(b"data: [DONE]\n\n")
        return reply

    async def __aenter__(self):
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        return self, Endpoint(base_url=f"http://127.0.0.1:{port}/v1", model="m")

    async def __aexit__(self, *_):
        await self.runner.cleanup()


def pieces(message):
    """A message as deltas: text by letters, a call's name first and its arguments by letters."""
    yield {"role": "assistant", "content": ""}
    for letter in message.get("content") or "":
        yield {"content": letter}
    calls = message.get("tool_calls") or []
    for index, call in enumerate(calls):
        head = {"name": call["function"]["name"], "arguments": ""}
        yield {"tool_calls": [{"index": index, "id": call["id"], "type": "function",
                               "function": head}]}  # fmt: skip
    # The arguments of parallel calls interleaved, as the protocol allows.
    texts = [call["function"]["arguments"] for call in calls]
    for letters in itertools.zip_longest(*texts, fillvalue=""):
        for index, letter in enumerate(letters):
            if letter:
                yield {"tool_calls": [{"index": index, "function": {"arguments": letter}}]}


def call(name, arguments="{}", id="call00001"):
    arguments = arguments if isinstance(arguments, str) else json.dumps(arguments)
    function = {"name": name, "arguments": arguments}
    return {"id": id, "type": "function", "function": function}


def wants(*calls):
    return {"content": None, "tool_calls": list(calls)}


def said(text="done"):
    return {"content": text}
