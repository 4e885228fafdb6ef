"""Attacks on the door by what a request looks like: its lines, lengths, paths, fields and pace.

The server behind it records every byte. Nothing without a key may reach it, nothing may be billed
to somebody else, and after each test no key and no prompt is in any file of the door.
"""

import asyncio
import contextlib
import json
import socket
import struct
import time

import pytest
from support.attacked import ASK, CANARY, CHAT, STREAM, replies, request, slowly
from support.waiting import eventually

HIDDEN = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 31\r\n\r\n"
    b'{"model":"HIDDEN","messages":1}'
)
BODY = json.dumps(ASK).encode()
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
N = str(len(BODY))


def framed(key: str, fields: list[str], body: bytes) -> bytes:
    """A request with lengths as they stand in ``fields``, and with what follows it."""
    head = [
        "POST /v1/chat/completions HTTP/1.1",
        "Host: h",
        f"Authorization: Bearer {key}",
        *fields,
    ]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (["Content-Length: 4", f"Content-Length: {N}"], BODY),
        ([f"Content-Length: {N}", f"Content-Length: {N}"], BODY),
        ([f"Content-Length: {N}, {N}"], BODY),
        ([f"Content-Length: +{N}"], BODY),
        (["Content-Length: -1"], BODY),
        ([f"Content-Length: 0x{len(BODY):x}"], BODY),
        (["Content-Length: 99999999999999999999999999"], BODY),
        ([f"Content-Length: {N} 5"], BODY),
        ([f"Content-Length : {N}"], BODY),
        ([f"Content-Length:\x0b{N}"], BODY),
        (["Content-Length: 4", "Transfer-Encoding: chunked"], CHUNKS),
        (["Transfer-Encoding: chunked", f"Content-Length: {len(CHUNKS)}"], CHUNKS),
        (["Transfer-Encoding: xchunked"], CHUNKS),
        (["Transfer-Encoding: chunked, identity"], CHUNKS),
        (["Transfer-Encoding: identity"], CHUNKS),
        (["Transfer-Encoding: gzip, chunked"], CHUNKS),
        (["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], CHUNKS),
        (["Transfer-Encoding: chunked", "Transfer-Encoding: x"], CHUNKS),
        (["Transfer-Encoding:\x0bchunked"], CHUNKS),
        (["Transfer-Encoding: \x00chunked"], CHUNKS),
        (["Transfer-Encoding : chunked"], CHUNKS),
        ([" Transfer-Encoding: chunked"], CHUNKS),
        (["X: y", "\tTransfer-Encoding: chunked"], CHUNKS),
        (["Transfer_Encoding: chunked"], CHUNKS),
        (["Transfer-Encoding: chunked"], b"zz\r\n" + BODY + b"\r\n0\r\n\r\n"),
        (["Transfer-Encoding: chunked"], b"-1\r\n" + BODY + b"\r\n0\r\n\r\n"),
        (["Transfer-Encoding: chunked"], b"0x%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)),
        (["Transfer-Encoding: chunked"], b"ffffffffffffffff\r\n" + BODY + b"\r\n0\r\n\r\n"),
        (
            ["Transfer-Encoding: chunked"],
            b"10000000000000000%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
        ),
        (["Transfer-Encoding: chunked"], b"%x\r\n%s0\r\n\r\n" % (len(BODY), BODY)),
        (["Transfer-Encoding: chunked"], b"%x\r\n%s\r\n0\r\n" % (len(BODY) - 3, BODY)),
        (["Transfer-Encoding: chunked"], b"\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)),
    ],
)
def test_a_request_of_two_lengths_is_refused(attacked, fields, body):
    """Or, where the odd field means nothing, there is one length, and what follows has no key."""
    _, key = attacked.customer()
    said = attacked.talk(framed(key, fields, body + HIDDEN), hang=1)
    assert said and all(reply.status in (200, 400, 401, 411, 413, 501) for reply in said)
    assert [reply.status for reply in said].count(200) <= 1
    for reply in said:
        if (
            reply.status != 200 and b"400 Bad Request" not in reply.body
        ):  # nginx's own, of a bad chunk
            assert reply.problem()
    assert b"HIDDEN" not in attacked.server.received
    assert len(attacked.server.requests) <= 1
    attacked.works()


@pytest.mark.parametrize(
    "body",
    [
        b"%x;ext=1\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
        b'%x;a="\r\n%s\r\n0\r\n\r\n' % (len(BODY), BODY),
        b"%x;%s\r\n%s\r\n0\r\n\r\n" % (len(BODY), b"e" * 5000, BODY),
        b"000%x\r\n%s\r\n0\r\nAuthorization: Bearer x\r\n\r\n" % (len(BODY), BODY),
        b"%x\n%s\n0\n\n" % (len(BODY), BODY),
        b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n",
    ],
)
def test_odd_chunks_are_one_body_and_no_second_request(attacked, body):
    """Extensions, trailers, bare LF: refused, or read as the one request that they are."""
    name, key = attacked.customer()
    said = attacked.talk(framed(key, ["Transfer-Encoding: chunked"], body + HIDDEN), hang=1)
    assert [reply.status for reply in said] in ([200, 401], [200, 400], [411, 401], [400], [200])
    assert [ask["messages"] for ask in attacked.server.asks] in ([], [ASK["messages"]])
    assert all(b"content-length: " in head.lower() for head, _ in attacked.server.requests)
    if attacked.server.requests:
        assert attacked.billed(name, 1) == (3, 2)


def test_bare_line_feeds_do_not_hide_a_key(attacked):
    """A head that ends with LF alone is the same head, also to the next request."""
    _, key = attacked.customer()
    good = framed(key, [f"Content-Length: {N}"], BODY).replace(b"\r\n", b"\n")
    said = attacked.talk(good + HIDDEN.replace(b"\r\n", b"\n"), hang=1)
    assert [reply.status for reply in said] in ([200, 401], [400])
    assert b"HIDDEN" not in attacked.server.received


def test_pipelined_requests_are_judged_and_billed_each_by_itself(attacked):
    """On one connection: two customers, a stranger, and again the first."""
    (ada, one), (bob, two) = attacked.customer(), attacked.customer()
    wrong = "sk-door-" + "x" * 43
    data = [request(one, ASK), request(two, STREAM), request(wrong, ASK), HIDDEN]
    said = attacked.talk(b"".join([*data, request(one, ASK, "Connection: close")]))
    assert [reply.status for reply in said] == [200, 200, 401, 401, 200]
    assert len(attacked.server.requests) == 3 and b"HIDDEN" not in attacked.server.received
    assert attacked.billed(ada, 2) == (6, 4) and attacked.billed(bob, 1) == (3, 2)


@pytest.mark.parametrize("path", ["/v1/models", "/usage", "/"])
def test_a_body_of_a_get_is_no_request(attacked, path):
    """Nor is it passed on, nor announced: the server would take the next request for it.

    Were Content-Length passed on without the body, the next customer's request on that connection
    to the server would be read as its body.
    """
    _, key = attacked.customer()
    data = request(key, HIDDEN, path=path, method="GET") + request(key, b"", path="/nothing")
    assert [reply.status for reply in attacked.talk(data, hang=1)] == [200, 404]
    assert b"HIDDEN" not in attacked.server.received


@pytest.mark.parametrize(
    "path",
    [
        "//v1/chat/completions", "/v1//chat/completions", "/v1/../metrics", "/v1/./models",
        "/v1/%63hat/completions", "/v1/chat%2fcompletions", "/v1/chat/completions;x",
        "/%2e%2e/metrics",
        "/v1/chat/completions/", "/v1/chat/completions?", "/v1/chat/completions?a=b",
        "/v1/models#x",
        "/v1/chat/completions%00", "/v1/chat/completions%20", "/v1/chat/completions/../../metrics",
        "/v1\\chat\\completions", "/V1/CHAT/COMPLETIONS", "/metrics", "/v1/metrics", "/health",
        "/version",
        "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/tokenize", "/detokenize", "/docs",
        "/openapi.json", "/v1/embeddings", "/v1/models/m", "/server_info", "/sleep", "/slots",
        "/props",
        "/keys/", "/nginx.conf", "/server.conf", "/error.log", "/state.json", "/tls/privkey.pem",
        "/usage/2026-11.jsonl", "/chat.html", "/@stream", "@stream", "/v1/chat/completions\x00",
        "http://127.0.0.1/metrics", "https://model/health", "*", "",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_only_what_customers_need_is_open(attacked, path, method):
    """Also to somebody with a key."""
    _, key = attacked.customer()
    said = attacked.one(request(key, ASK, "Connection: close", path=path, method=method))
    assert said.status in (400, 404) and said.problem()
    assert attacked.server.received == b""


@pytest.mark.parametrize("uri", [f"https://evil.example{CHAT}", f"http://127.0.0.1:1{CHAT}"])
def test_whole_addresses_and_other_hosts_lead_to_the_same_server(attacked, uri):
    """Nobody is sent elsewhere, and the server sees its own name."""
    name, key = attacked.customer()
    assert attacked.post(key, ASK, path=uri).status == 200
    [(head, _)] = attacked.server.requests
    assert (
        b"evil" not in head and f"host: 127.0.0.1:{attacked.server.port}".encode() in head.lower()
    )
    assert attacked.billed(name, 1) == (3, 2)


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/usage"])
@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "PUT", "TRACE", "CONNECT", "OPTIONS", "DELETE", "get", "X"]
)
def test_other_methods_are_refused(attacked, path, method):
    """HEAD brings no answer to pay for, TRACE repeats no key."""
    _, key = attacked.customer()
    if method == "GET" and path != CHAT:
        pytest.skip("this one is open")
    said = attacked.talk(request(key, b"", "Connection: close", path=path, method=method))
    assert [reply.status for reply in said] in ([405], [400])
    assert key.encode() not in said[0].body and attacked.server.received == b""


FORGED = ["X-Forwarded-For", "X-Real-IP", "X-Original-URL", "X-Rewrite-URL", "Forwarded",
"X-Accel-Redirect",
          "X-HTTP-Method-Override", "X-Customer", "X_Customer", "Customer", "Cookie", "Via",
          "Trailer", "TE",
          "Proxy-Authorization", "X-Api-Key", "Origin", "Referer", "X-Request-Id",
          "Accept-Encoding"]  # fmt: skip


def test_fields_of_a_customer_do_not_pass(attacked):
    """The server sees the door's own fields only, and its own key."""
    name, key = attacked.customer()
    assert (
        attacked.post(key, ASK, *[f"{field}: /metrics, {CANARY}" for field in FORGED]).status == 200
    )
    [(head, _)] = attacked.server.requests
    fields = dict(line.split(": ", 1) for line in head.decode().splitlines()[1:] if line)
    known = {"Host", "Content-Type", "Authorization", "X-Session-ID", "Content-Length"}
    assert set(fields) == known and fields["Authorization"] == "Bearer key-of-the-model-server"
    assert fields["X-Session-ID"] == name


@pytest.mark.parametrize("value", ["a\x01b", "a\x7f", "ä", "x" * 7000, "a\tb", "other-customer"])
def test_a_session_is_the_customers_own(attacked, value):
    """Whatever it is called, it begins with who asks, and ends where it ends."""
    name, key = attacked.customer()
    said = attacked.post(key, ASK, f"X-Session-ID: {value}")
    assert said.status in (200, 400)
    for head, _ in attacked.server.requests:
        assert head.count(b"\r\n") == 7
        assert f"X-Session-ID: {name}".encode() in head


@pytest.mark.parametrize(
    "lines",
    [
        [], ["Authorization:"], ["Authorization: Bearer"], ["Authorization: Bearer "],
        ["Authorization: {key}"],
        ["Authorization: Basic {key}"], ["Authorization: Bearer  {key}"],
        ["Authorization: Bearer\t{key}"],
        ["Authorization: Bearer {key} x"], ["Authorization: Bearer {key},"],
        ["Authorization: Bearer x{key}"],
        ["Authorization: Bearer {key}\x00"], ["Authorization: Bearer {key}\x0b"],
        ["Author_ization: Bearer {key}"],
        ["Authorization : Bearer {key}"], [" Authorization: Bearer {key}"],
        ["Authorization: Bearer", " {key}"],
        ["Authorization\x00: Bearer {key}"], ["X-Api-Key: {key}"], ["Api-Key: {key}"],
        ["Cookie: key={key}"],
        ["Authorization: Bearer ../keys/x"], ["Authorization: Bearer __proto__"],
        ["Proxy-Authorization: Bearer {key}"],
        ["Authorization: Bearer wrong", "Authorization: Bearer {key}"],
        ["Authorization: Bearer wrong", "X: y", "authorization: Bearer {key}"],
        ["Authorization: Bearer " + "k" * 7000], ["Authorization: Bearer {key}ä"],
    ],
)  # fmt: skip
def test_no_key_no_entry(attacked, lines):
    """A key counts in one place and one form only."""
    _, key = attacked.customer()
    head = [f"POST {CHAT} HTTP/1.1", "Host: h", f"Content-Length: {N}", "Connection: close"]
    data = "\r\n".join([*head, *[line.format(key=key) for line in lines], "", ""]).encode("latin-1")
    said = attacked.one(data + BODY)
    assert said.status in (400, 401) and said.problem()
    assert attacked.server.received == b""


def test_of_two_keys_at_most_the_first_counts(attacked):
    """Never is one customer judged and another billed."""
    (ada, one), (bob, two) = attacked.customer(), attacked.customer()
    said = attacked.post(one, ASK, f"Authorization: Bearer {two}")
    assert said.status in (200, 400, 401)
    assert attacked.billed(bob, 0) == (0, 0)
    assert len(attacked.ledger(ada)) == (said.status == 200) == len(attacked.server.requests)


@pytest.mark.parametrize(
    "fields", [["X: " + "x" * 64_000], [f"X-{n}: {'x' * 1000}" for n in range(64)]]
)
def test_huge_heads_are_refused(attacked, fields):
    """With 400, in OpenAI's form, unless the end of the connection overtakes the answer."""
    _, key = attacked.customer()
    for more, path in ((fields, CHAT), ([], "/v1/" + "x" * 64_000)):
        said = attacked.talk(request(key, ASK, "Connection: close", *more, path=path))
        assert all(one.status in (400, 404, 414, 431) and one.problem() for one in said)
    assert attacked.server.received == b""
    attacked.works()


def test_huge_bodies_are_refused_and_never_on_disk(own_door):
    """At the limit a request is served from memory; above it 413, whether declared or chunked.

    nginx counts the lines between chunks as a part of its buffer; a body of many small
    chunks would go to a file.
    """
    attacked = own_door({"error_log error.log error": "error_log error.log warn"})
    _, key = attacked.customer()
    room = 1024 * 1024 - len(BODY)
    fits = json.dumps(ASK | {"user": (CANARY * (room // len(CANARY)))[: room - 20]}).encode()
    chunks = b"".join(b"1000\r\n%s\r\n" % (CANARY.encode() * 300)[:4096] for _ in range(600))
    small = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in
                     (fits[at : at + 100] for at in range(0, len(fits), 100)))  # fmt: skip
    close, chunked = "Connection: close", "Transfer-Encoding: chunked"
    for data, status in [
        (request(key, fits, close), 200),
        (framed(key, [close, chunked], small + b"0\r\n\r\n"), None),
        (request(key, CANARY.encode() * 100_000, close), 413),
        (framed(key, [close, chunked], chunks + b"0\r\n\r\n"), None),
        (framed("wrong", [close, chunked], chunks + b"0\r\n\r\n"), None),
    ]:
        said = attacked.one(data)
        assert said.status in ((200, 401, 411, 413) if status is None else (status,)), said
        assert said.status == 200 or said.problem()
    assert len(attacked.server.requests) <= 2
    assert "temporary file" not in (attacked.door.folder / "error.log").read_text()


def test_slow_senders_are_cut_off_while_others_are_served(own_door):
    """A head a byte at a time, with and without a key; and a body that does not go on."""
    attacked = own_door({"client_header_timeout 10s": "client_header_timeout 1s",
                         "client_body_timeout 10s": "client_body_timeout 1s"})  # fmt: skip
    name, key = attacked.customer(in_flight=1)
    slow = [attacked.connect() for _ in range(3)]
    slow[1].sendall(request(key, ASK)[:-20])
    assert slowly(slow[0], b"POST /v1/chat/completions HTTP/1.1\r\nHost: ", 0.05)
    attacked.works()
    slow[1].settimeout(10)
    with contextlib.suppress(OSError):  # reset, which is as good
        assert slow[1].recv(1000)[8:11] in (b"", b" 40")
    assert eventually(lambda: attacked.flying(name) == 0)
    assert len(attacked.server.requests) == 1
    assert attacked.post(key, ASK).status == 200


def test_bodies_that_never_end_hold_their_customers_places_only(attacked):
    """Each may be a megabyte of the door's memory, so there may be as many as requests at a time.

    So the place is taken before the body is read.
    """
    _, key = attacked.customer(in_flight=3)
    lines = [attacked.connect() for _ in range(6)]
    for line in lines:
        line.sendall(request(key, ASK)[:-20])
    refused = 0
    for line in lines:
        line.settimeout(1)
        with contextlib.suppress(TimeoutError):
            refused += line.recv(1000).startswith(b"HTTP/1.1 429")
    assert refused == 3
    attacked.works()


def test_idle_connections_keep_nobody_out(attacked):
    """Silent ones, half a greeting of TLS, and some that stop after a line."""
    lines = [socket.create_connection(("127.0.0.1", attacked.door.place.port)) for _ in range(400)]
    for line in lines[:100]:
        line.sendall(b"\x16\x03\x01")
    for line in [attacked.connect() for _ in range(100)]:
        line.sendall(b"POST /v1/chat/completions HTTP/1.1\r\n")
    attacked.works()
    for line in lines:
        line.close()


@pytest.mark.parametrize(
    "noise", [b"\x00" * 1000, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 500]
)
def test_noise_instead_of_tls(attacked, noise):
    """Is answered with nothing, or with a plain refusal."""
    with socket.create_connection(("127.0.0.1", attacked.door.place.port), timeout=10) as line:
        line.sendall(noise)
        try:
            said = line.recv(4096)
        except ConnectionError:
            said = b""
    assert said == b"" or said[:1] == b"\x15" or b"400 Bad Request" in said
    attacked.works()


async def test_ten_thousand_wrong_keys(attacked):
    """All are refused; a good customer is served meanwhile; neither memory nor disk grows."""
    _, key = await asyncio.to_thread(attacked.customer)
    memory, disk = attacked.rss_mb(), size(attacked.door.folder)
    bad = attacked.metric("door_bad_keys_total")

    async def guess(which: int) -> int:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", attacked.door.place.port, ssl=attacked.trust
        )
        for batch in range(0, 1000, 100):
            for n in range(batch, batch + 100):
                writer.write(request(f"sk-door-{which:06d}{n:037d}", ASK))
            await writer.drain()
        data = b""
        while data.count(b"HTTP/1.1 ") < 1000 or not data.endswith(b'"}}'):
            more = await reader.read(1 << 16)
            if not more:
                break
            data += more
        writer.close()
        return sum(reply.status == 401 for reply in replies(data))

    guesses = [asyncio.create_task(guess(which)) for which in range(10)]
    served = []
    while not all(one.done() for one in guesses) or not served:
        served.append((await asyncio.to_thread(attacked.post, key, ASK)).status)
    assert sum([await one for one in guesses]) == 10_000
    assert set(served) == {200} and len(attacked.server.requests) == len(served)
    assert attacked.metric("door_bad_keys_total") - bad == 10_000
    assert (
        attacked.rss_mb() - memory < 20
        and size(attacked.door.folder) - disk < 2000 * len(served) + 20_000
    )


def test_strangers_do_not_fill_the_disk(attacked):
    """Whatever they send, they cost no line of a log each.

    nginx would write a line of error.log for each request that declares a body too large, before
    it asks for the key: hundreds of gigabytes a day for somebody with a fast line.
    """
    before = size(attacked.door.folder)
    data = framed("wrong", ["Content-Length: 99999999", "Connection: close"], b"")
    chunks = framed("wrong", ["Transfer-Encoding: chunked", "Connection: close"], b"zz\r\n")
    for _ in range(100):
        for said in (attacked.talk(data, hang=0.02), attacked.talk(chunks, hang=0.02)):
            assert all(reply.status in (400, 401, 411, 413) for reply in said)
    assert size(attacked.door.folder) - before < 2000


PLACES = {
    "query": lambda key: {"path": f"{CHAT}?key={key}"},
    "path": lambda key: {"path": f"/v1/{key}/completions"},
    "agent": lambda key: {"fields": [f"User-Agent: {key}"]},
    "referer": lambda key: {"fields": [f"Referer: https://x/?key={key}"]},
    "host": lambda key: {"host": key},
    "session": lambda key: {"fields": [f"X-Session-ID: {key}"]},
    "message": lambda key: {
        "ask": ASK | {"messages": [{"role": "user", "content": f"{CANARY} {key}"}]}
    },
    "model": lambda key: {"ask": ASK | {"model": key}},
    "field": lambda key: {"ask": ASK | {key.replace("-", "_"): 1, key: 1}},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "event", ["200", "401", "413", "400", "cut", "bad chunk", "timeout", "502", "half"]
)
def test_a_key_in_the_wrong_place_is_in_no_file(attacked, place, event):
    """The fixture looks for it in all files of the door and in the list of processes.

    With each error, nginx would write the fields Host and Referer into error.log.
    """
    _, key = attacked.customer()
    how = PLACES[place](key)
    ask, fields, path = how.get("ask", ASK), how.get("fields", []), how.get("path", CHAT)
    body = json.dumps(ask).encode() + b"x" * (event == "400")
    length = {"413": 99_999_999, "cut": 9999, "timeout": len(body)}.get(event, len(body))
    lines = (
        [f"Content-Length: {length}"] if event != "bad chunk" else ["Transfer-Encoding: chunked"]
    )
    good = "wrong" if event == "401" else key
    head = [
        f"POST {path} HTTP/1.1",
        f"Host: {how.get('host', 'h')}",
        f"Authorization: Bearer {good}",
    ]
    data = "\r\n".join([*head, "Connection: close", *fields, *lines, "", ""]).encode()
    data += b"zz\r\n" if event == "bad chunk" else body
    if event == "502":
        attacked.server.answer = lambda ask: [
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"
        ]
    if event == "half":
        attacked.server.answer = lambda ask: [
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz",
            None,
        ]
    with attacked.connect() as line:
        line.settimeout(1)
        line.sendall(data)
        if event not in ("cut", "timeout"):
            try:
                while line.recv(1 << 16):
                    pass
            except OSError:
                pass
        elif event == "timeout":
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    time.sleep(0.05)


def size(folder) -> int:
    """Bytes in all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
