"""A model server that records every byte that reaches it and answers as it is told to."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterable

from helpers.endpoint import Endpoint
from support import answers

Piece = bytes | float | None
WHOLE_USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def polite(ask: dict) -> Iterable[Piece]:
    """Two words, streamed or whole, and the count of OpenAI's form."""
    if ask.get("stream"):
        return [answers.GOOD]
    choice = {"index": 0, "message": {"role": "assistant", "content": "w w"}, "text": "w w"}
    return [answers.whole(json.dumps({"choices": [choice], "usage": WHOLE_USAGE}).encode())]


class Recorder:
    """The server, in a thread of its own. Use it as a context.

    ``answer`` takes the body of a request as a dictionary and gives pieces of the answer: bytes, or
    seconds to wait, or None to hang up. ``received`` is all that ever came, ``requests`` are its
    heads and bodies.
    """

    def __init__(self) -> None:
        self.received, self.requests, self.open = bytearray(), [], 0
        self.answer: Callable[[dict], Iterable[Piece]] = polite

    def __enter__(self):
        self._loop, ready = asyncio.new_event_loop(), threading.Event()
        self._tasks: set[asyncio.Task] = set()

        async def listen() -> None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
            self.port = self._server.sockets[0].getsockname()[1]
            ready.set()

        def run() -> None:
            self._loop.create_task(listen())
            self._loop.run_forever()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_) -> None:
        async def end() -> None:
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def endpoint(self) -> Endpoint:
        """The server as its door asks it, with the server's own key."""
        url = f"http://127.0.0.1:{self.port}/v1"
        return Endpoint(base_url=url, model="m", api_key="key-of-the-model-server")

    @property
    def asks(self) -> list[dict]:
        """The bodies that came, read."""
        return [json.loads(body) for _, body in self.requests if body]

    def forget(self) -> None:
        """Begin a new record, and answer politely again."""
        self.received, self.requests, self.answer = bytearray(), [], polite

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        self.open += 1
        try:
            with contextlib.suppress(
                ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError
            ):
                while True:
                    await self._one(reader, writer)
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await self._read(reader.readuntil(b"\r\n\r\n"))
        fields = dict(line.split(b":", 1) for line in head.lower().splitlines()[1:] if line)
        body = await self._read(reader.readexactly(int(fields.get(b"content-length", b"0"))))
        self.requests.append((head, body))
        for piece in self.answer(json.loads(body) if body else {}):
            if piece is None:
                raise ConnectionError
            if isinstance(piece, float):
                await asyncio.sleep(piece)
            else:
                writer.write(piece)
                await writer.drain()

    async def _read(self, more) -> bytes:
        data = await more
        self.received += data
        return data
