"""A model on strings: an OpenAI-protocol server that answers what it was told to answer.

It stands for a model that an attacker has talked into the worst, and for every other model whose
answer has to be known beforehand.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from helpers.endpoint import Endpoint
from helpers.load.client.answer import Call


class Puppet(ThreadingHTTPServer):
    """Serve given answers while in its ``with``: one for each request, the last one for ever.

    Args:
        *answers: messages, from ``says`` or ``calls``.

    ``asked`` holds the requests that came.

    >>> with Puppet(says("Hello")) as puppet, puppet.endpoint.client() as client:
    ...     chat = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    ...     client.chat.completions.create(**chat).choices[0].message.content
    'Hello'
    """

    def __init__(self, *answers: dict) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers, self.asked = list(answers), list[dict]()
        self.endpoint = Endpoint(base_url=f"http://127.0.0.1:{self.server_port}/v1", model="puppet")
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def reply(self, body: dict) -> tuple[int, str]:
        """Return the HTTP status and the text that answer a request."""
        self.asked.append(body)
        return self.written(self.answers[min(len(self.asked), len(self.answers)) - 1], body)

    def written(self, answer: dict, body: dict) -> tuple[int, str]:
        """Return an answer in the API's form, as a whole or as a stream of events."""
        finish = "tool_calls" if answer.get("tool_calls") else "stop"
        message = {"role": "assistant", **answer}
        if body.get("stream"):
            return 200, f"data: {json.dumps(event(delta=message, finish_reason=finish))}\n\n"
        return 200, json.dumps(event(message=message, finish_reason=finish))


def says(text: str) -> dict:
    """Return an answer in words."""
    return {"content": text}


def calls(*wishes: tuple[str, dict]) -> dict:
    """Return an answer that asks for calls, ``(name, arguments)`` each."""
    made = [
        Call(f"call{number:05}", name, json.dumps(given)).as_dict()
        for number, (name, given) in enumerate(wishes)
    ]
    return {"content": None, "tool_calls": made}


def event(**choice: Any) -> dict:
    """Return an answer, or a piece of one, in the API's form."""
    usage = {"prompt_tokens": 7, "completion_tokens": 5}
    return {"id": "x", "choices": [{"index": 0, **choice}], "usage": usage}


class _Handler(BaseHTTPRequestHandler):
    server: Puppet

    def do_POST(self) -> None:
        """Answer one request."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, text = self.server.reply(body)
        kind = "text/event-stream" if text.startswith("data:") else "application/json"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""
