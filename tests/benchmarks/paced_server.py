"""A mock model server that paces tokens exactly and logs when it really sent them.

``python paced_server.py --ttft 0.1 --itl 0.01`` prints its port and serves until its standard
input ends; ``GET /log`` returns, for each request in order of arrival, the arrival and the send
time of each token (``time.perf_counter`` of this machine, comparable between processes on Linux),
and ``DELETE /log`` empties it. It is a bare asyncio protocol, so that the server's own cost stays
small beside the client's; with ``--itl 0`` all tokens go out at once.
"""

import argparse
import asyncio
import gc
import json
import os
import sys
from time import perf_counter as clock

import uvloop

CHUNK = (
    '{"id":"chatcmpl-%d","object":"chat.completion.chunk","created":1700000000,"model":"mock",'
    '"choices":[{"index":0,"delta":%s,"logprobs":null,"finish_reason":%s,"token_ids":null}]%s}'
)
HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Mon, 01 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)


def event(text: str) -> bytes:
    """Return one server-sent event as one HTTP chunk."""
    data = f"data: {text}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


ROLE = event(CHUNK % (1, '{"role":"assistant","content":""}', "null", ""))
TOKEN = event(CHUNK % (1, '{"content":" hello"}', "null", ""))
LAST = event(CHUNK % (1, '{"content":" hello"}', '"length"', ""))


class Server:
    """What all connections share: the pace, the log, and a wheel of what is due in which ms."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.ttft, self.itl, self.role_first = options.ttft, options.itl, options.role_first
        self.log: list[tuple[float, list[float]]] = []
        self.wheel: dict[int, list[Connection]] = {}
        self.turned, self.turning = 0, False

    def schedule(self, when: float, connection: "Connection") -> None:
        """Have ``connection`` send its next token at ``when``."""
        slot = max(int(when * 1000) + 1, self.turned + 1)
        if slot in self.wheel:
            self.wheel[slot].append(connection)
        else:
            self.wheel[slot] = [connection]
            if not self.turning:
                self.turning = True
                asyncio.get_running_loop().call_later(0.001, self.tick)

    def tick(self) -> None:
        """Send what is due."""
        now = int(clock() * 1000)
        for slot in sorted(slot for slot in self.wheel if slot <= now):
            self.turned = slot
            for connection in self.wheel.pop(slot):
                connection.step()
        self.turning = bool(self.wheel)
        if self.turning:
            asyncio.get_running_loop().call_later(0.001, self.tick)


class Connection(asyncio.Protocol):
    """One kept-alive connection."""

    def __init__(self, server: Server) -> None:
        self.server, self.rest, self.open = server, b"", True

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport, self.socket = transport, transport.get_extra_info("socket").fileno()

    def send(self, data: bytes) -> None:
        """Write at once (uvloop's transport waits for the end of its turn), so the log is true."""
        try:
            data = data[os.write(self.socket, data) :]
        except BlockingIOError:
            pass
        except OSError:
            return
        if data:
            self.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False

    def data_received(self, data: bytes) -> None:
        now = clock()
        self.rest += data
        head, found, body = self.rest.partition(b"\r\n\r\n")
        if not found:
            return
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        if len(body) < length:
            return
        self.rest = body[length:]
        self.answer(*head.split(b" ", 2)[:2], body[:length], now)

    def answer(self, method: bytes, path: bytes, body: bytes, now: float) -> None:
        if path.startswith(b"/v1/chat/completions"):
            asked = json.loads(body)
            self.prompt = sum(len(str(m["content"]).split()) for m in asked["messages"])
            tokens = asked.get("max_completion_tokens") or asked.get("max_tokens") or 16
            self.left = self.tokens = tokens
            self.times: list[float] = []
            self.server.log.append((now, self.times))
            self.due = now + self.server.ttft
            if self.server.itl == 0 and self.server.ttft == 0:
                self.send(HEAD + ROLE + TOKEN * (tokens - 1) + LAST + self.tail())
                self.times += [clock()] * tokens
            else:
                self.send(HEAD + ROLE if self.server.role_first else HEAD)
                self.server.schedule(self.due, self)
        elif method == b"DELETE":
            self.server.log.clear()
            self.reply({})
        elif path.startswith(b"/log"):
            self.reply(self.server.log)
        elif path.startswith(b"/v1/models"):
            self.reply({"object": "list", "data": [{"id": "mock", "owned_by": "vllm"}]})
        else:
            self.reply({"status": "ok"})

    def step(self) -> None:
        if not self.open:
            return
        self.left -= 1
        data = TOKEN if self.left else LAST + self.tail()
        if not self.times and not self.server.role_first:
            data = ROLE + data
        self.send(data)
        self.times.append(clock())
        if self.left:
            self.due += self.server.itl
            self.server.schedule(self.due, self)

    def tail(self) -> bytes:
        usage = {
            "prompt_tokens": self.prompt,
            "total_tokens": self.prompt + self.tokens,
            "completion_tokens": self.tokens,
        }
        text = CHUNK.replace('[{"index"', '[]%s{"index"').split("[]")[0] + "[]" + ',"usage":%s}'
        return event(text % (1, json.dumps(usage))) + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"

    def reply(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
            % (len(body), body)
        )


async def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ttft", type=float, default=0.1, help="seconds")
    parser.add_argument("--itl", type=float, default=0.01, help="seconds")
    parser.add_argument("--role-first", action="store_true", help="send the role at once")
    server = Server(parser.parse_args())
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: Connection(server), "127.0.0.1", 0, backlog=8192)
    print(listener.sockets[0].getsockname()[1], flush=True)
    gc.freeze()
    gc.disable()
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(main())
    os._exit(0)
