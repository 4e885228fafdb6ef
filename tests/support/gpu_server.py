"""The GPU of ``virtual_gpu`` in real time, behind an OpenAI API.

``python gpu_server.py A B PREFILL [SEQUENCES]`` prints its port. A step begins when the one before
it ends by the plan, however late the machine was; ``/late`` says how late (p95, seconds), because
on a machine too busy to keep the plan nothing can be measured. The end of standard input stops it.
"""

import asyncio
import json
import sys
from collections import deque

from aiohttp import web

CHUNK = 2048


class Engine:
    """Continuous batching: a step costs ``a + b x sequences`` ms, and its prompts at a rate."""

    def __init__(self, a: float, b: float, prefill: float, seqs: float = 1e9) -> None:
        self.a, self.b, self.prefill, self.seqs = a, b, prefill, seqs
        self.reading: deque = deque()  # [prompt left, tokens left, queue of this answer]
        self.running: list = []
        self.late: list[float] = [0.0]

    async def run(self, *_) -> None:
        loop, planned = asyncio.get_running_loop(), 0.0
        while True:
            if not (self.reading or self.running):
                await asyncio.sleep(0.001)
                planned = loop.time()
                continue
            budget, gets = CHUNK, list(self.running)
            while self.reading and budget and len(gets) < self.seqs:
                first = self.reading[0]
                part = min(first[0], budget)
                first[0] -= part
                budget -= part
                if not first[0]:
                    gets.append(self.reading.popleft())
            planned += (self.a + self.b * len(gets)) / 1e3 + (CHUNK - budget) / self.prefill
            await asyncio.sleep(max(0.0, planned - loop.time()))
            self.late.append(loop.time() - planned)
            for one in gets:
                one[1] -= 1
                one[2].put_nowait(one[1])
            self.running = [one for one in gets if one[1] > 0]

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        prompt = sum(len(message["content"].split()) for message in body["messages"])
        left: asyncio.Queue = asyncio.Queue()
        one = [prompt, body["max_tokens"], left]
        self.reading.append(one)
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        try:
            while await left.get():
                await self.send(answer, choices=[{"index": 0, "delta": {"content": " w"}}])
            end = {"index": 0, "delta": {"content": " w"}, "finish_reason": "length"}
            usage = {"prompt_tokens": prompt, "completion_tokens": body["max_tokens"]}
            await self.send(answer, choices=[end])
            await self.send(answer, choices=[], usage=usage)
            await answer.write(b"data: [DONE]\n\n")
        except (ConnectionError, asyncio.CancelledError):
            one[1] = 1  # whoever hung up leaves the batch, as with vLLM
            if one in self.reading:
                self.reading.remove(one)
        return answer

    async def metrics(self, _) -> web.Response:
        """As vLLM says it."""
        running = int(min(len(self.running) + len(self.reading), self.seqs))
        waiting = len(self.running) + len(self.reading) - running
        lines = f"vllm:num_requests_running {running}\nvllm:num_requests_waiting {waiting}\n"
        return web.Response(text=lines)

    async def send(self, answer: web.StreamResponse, **event) -> None:
        await answer.write(b"data: " + json.dumps(event).encode() + b"\n\n")


async def main() -> None:
    engine = Engine(*map(float, sys.argv[1:]))
    app = web.Application()
    models = {"data": [{"id": "gpu", "owned_by": "vllm"}]}
    app.router.add_post("/v1/chat/completions", engine.chat)
    app.router.add_get("/metrics", engine.metrics)
    app.router.add_get("/v1/models", lambda _: asyncio.sleep(0, web.json_response(models)))
    app.router.add_get("/late", lambda _: asyncio.sleep(0, web.json_response(
        sorted(engine.late)[int(0.95 * len(engine.late))])))  # fmt: skip
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    running = asyncio.create_task(engine.run())
    await asyncio.to_thread(sys.stdin.read)
    running.cancel()


if __name__ == "__main__":
    asyncio.run(main())
