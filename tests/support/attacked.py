"""A door under attack: raw requests to it, and what must hold after each of them."""

import contextlib
import http.client
import io
import itertools
import json
import math
import socket
import ssl
import time
import urllib.request
from pathlib import Path

import psutil

from helpers import serve
from support.recorder import Recorder
from support.waiting import eventually

CHAT = "/v1/chat/completions"
CANARY = "canary-of-a-prompt"  # no file of the door ever holds it
ASK = {"model": "m", "messages": [{"role": "user", "content": CANARY}], "max_tokens": 8}
STREAM = ASK | {"stream": True}
OPEN = {"requests_a_minute": 1e6, "in_flight": 100}


class Attacked:
    """The door, the server behind it, and what attackers need."""

    def __init__(self, folder: Path, server: Recorder, **options) -> None:
        price = serve.Price(input=1, cached=0.1, output=2)
        self.server = server
        self.door = serve.Door(folder=folder, upstream=server.endpoint, price=price, **options)
        self.number, self.keys, self.connections = itertools.count(), [], []

    def start(self) -> "Attacked":
        self.door.start()
        self.trust = ssl.create_default_context(cafile=self.door.authority)
        self.before()
        return self

    def before(self) -> None:
        """Begin a test: a new record, no keys yet."""
        self.server.forget()
        self.keys, self.worker = [], self.door._workers()[0]

    def customer(self, **limits) -> tuple[str, str]:
        """A new customer: name and key."""
        name = f"customer-{next(self.number)}"
        limits = serve.Limits(**(OPEN | limits))
        self.keys.append(self.door.customers.issue(name, limits).get_secret_value())
        return name, self.keys[-1]

    def connect(self) -> ssl.SSLSocket:
        raw = socket.create_connection(("127.0.0.1", self.door.place.port), timeout=20)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connections.append(self.trust.wrap_socket(raw, server_hostname="127.0.0.1"))
        return self.connections[-1]

    def talk(self, data: bytes, timeout_s: float = 4, hang: float = 0) -> list["Reply"]:
        """Send bytes on a connection of their own; every reply until it is closed or silent."""
        with self.connect() as line:
            line.settimeout(hang or timeout_s)
            got = b""
            try:
                line.sendall(data)
                while more := line.recv(1 << 16):
                    got += more
            except TimeoutError:
                assert hang, f"the door is silent; so far it said {got!r}"
            except OSError:
                pass  # reset: all that was said before counts
        return replies(got)

    def post(self, key: str, ask: dict | bytes, *fields: str, path: str = CHAT) -> "Reply":
        """One request of a customer, and its reply."""
        return self.one(request(key, ask, "Connection: close", *fields, path=path))

    def one(self, data: bytes) -> "Reply":
        [reply] = self.talk(data)
        return reply

    def works(self) -> None:
        """A good customer is served."""
        assert self.post(self.customer()[1], ASK).status == 200

    def metrics(self) -> str:
        url = f"http://127.0.0.1:{self.door.operator_port}/metrics"
        with urllib.request.urlopen(url) as answer:
            return answer.read().decode()

    def metric(self, series: str) -> float:
        """A value of the operator's page; 0 where it is not there yet."""
        found = [line for line in self.metrics().splitlines() if line.startswith(series + " ")]
        return float(found[0].split()[-1]) if found else 0.0

    def flying(self, name: str) -> float:
        return self.metric(f'door_requests_in_flight{{customer="{name}"}}')

    def ledger(self, name: str) -> list[dict]:
        """The ends in the ledger of a customer: plain figures, and no more ends than beginnings."""
        files = sorted((self.door.folder / "usage").iterdir())
        lines = [
            json.loads(line) for file in files for line in file.read_bytes().split(b"\n") if line
        ]
        mine = [line for line in lines if line["customer"] == name]
        ends = [line for line in mine if line["event"] == "end"]
        for end in ends:
            for used in ("input", "cached", "output", "usd"):
                value = end[used]
                assert isinstance(value, int | float) and math.isfinite(value) and value >= 0, end
        assert len({end["id"] for end in ends}) == len(ends) <= len(mine) - len(ends)
        return ends

    def billed(self, name: str, ends: int) -> tuple[int, int]:
        """Input and output tokens once so many requests have ended."""
        assert eventually(lambda: len(self.ledger(name)) == ends), self.ledger(name)
        mine = self.ledger(name)
        return sum(end["input"] for end in mine), sum(end["output"] for end in mine)

    def rss_mb(self) -> float:
        return self.worker.memory_info().rss / 1e6

    def hurt(self) -> list[str]:
        """What must never be, after whatever happened: empty if all is well."""
        for line in self.connections:
            line.close()
        self.connections.clear()
        found = []
        if self.worker.pid not in [worker.pid for worker in self.door._workers()]:
            found.append("the worker died")
        if not eventually(lambda: not any(self._places()), 10):
            found.append(f"places are held: {self._places()}")
        secrets = [("a key", key) for key in self.keys] + [("a prompt", CANARY)]
        for path in self.door.folder.rglob("*"):
            data = b""
            with contextlib.suppress(OSError):  # a folder, or replaced meanwhile
                data = path.read_bytes()
            found += [
                f"{path.name} shows {what}" for what, text in secrets if text.encode() in data
            ]
        shown = " ".join(
            " ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])
        )
        return found + [f"ps shows {what}" for what, text in secrets if text in shown]

    def _places(self) -> list[float]:
        lines = self.metrics().splitlines()
        return [
            float(one.split()[-1]) for one in lines if one.startswith("door_requests_in_flight{")
        ]


class Reply:
    """Status, header fields (as a message) and body of a reply; ``whole`` if it was all there."""

    def __init__(self, parsed: http.client.HTTPResponse) -> None:
        self.status, self.fields = parsed.status, parsed.headers
        try:
            self.body, self.whole = parsed.read(), True
        except http.client.IncompleteRead as cut:
            self.body, self.whole = cut.partial, False

    def __repr__(self) -> str:
        return f"<{self.status} {self.body[:300]!r}>"

    def problem(self) -> dict:
        """The error, which is in OpenAI's form."""
        assert self.fields["Content-Type"] == "application/json", self
        error = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"], self
        return error


class _Bytes:
    """What http.client reads from, in place of a socket."""

    def __init__(self, data: bytes) -> None:
        self.file = io.BufferedReader(io.BytesIO(data))
        self.file.close, self.end = lambda: None, len(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return self.file


def replies(data: bytes) -> list[Reply]:
    """Every reply that stands in these bytes."""
    source, found = _Bytes(data), []
    while source.file.tell() < source.end:
        parsed = http.client.HTTPResponse(source)
        try:
            parsed.begin()
        except (http.client.BadStatusLine, http.client.IncompleteRead):
            return found  # no HTTP, or cut within a head
        found.append(Reply(parsed))
    return found


def request(
    key: str, ask: dict | bytes, *fields: str, path: str = CHAT, method: str = "POST"
) -> bytes:
    """A good request as bytes."""
    body = ask if isinstance(ask, bytes) else json.dumps(ask).encode()
    lines = [
        "Host: 127.0.0.1",
        f"Authorization: Bearer {key}",
        f"Content-Length: {len(body)}",
        *fields,
    ]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode("latin-1") + body


def slowly(line: socket.socket, data: bytes, gap_s: float, limit_s: float = 20) -> bool:
    """Send a byte at a time until the other side closes; whether it did."""
    deadline = time.monotonic() + limit_s
    try:
        for byte in itertools.chain(data, itertools.repeat(ord("x"))):
            line.sendall(bytes([byte]))
            time.sleep(gap_s)
            if time.monotonic() > deadline:
                return False
    except OSError:
        return True
