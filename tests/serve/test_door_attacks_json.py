"""Attacks on the door by what a request says: fields that harm others, tokens that nobody pays."""

import json
import socket
import struct
import threading
import time
import urllib.error
import urllib.request

import pytest
from support import answers
from support.attacked import ASK, CANARY, CHAT, STREAM, request
from support.waiting import eventually

from helpers import serve
from helpers.errors import CourseError

TEXT = "/v1/completions"
WORDS = [{"role": "user", "content": CANARY}]


def written(more: str) -> bytes:
    """A request with a text in it that json.dumps would not write."""
    return b'{"model":"m","messages":[],%s}' % more.encode()


@pytest.mark.parametrize(
    "body",
    [
        b"", b"  ", b"null", b"[]", b'"x"', b"5", b"{", b"{}{}", b"{'a':1}", b"\x00", b"NaN",
        b"\xef\xbb\xbf" + json.dumps(ASK).encode(), json.dumps(ASK).encode("utf-16"),
        b"[" * 100_000, b'{"messages":' * 80_000,
        written('"metadata":' + "[" * 100_000 + "]" * 100_000),
        written('"priority":-5'), written('"__proto__":{"stream":true,"n":50}'),
        written('"constructor":{}'),
        written('"prototype":{}'), written('"toString":1'), written('"":1'),
        written('"messages prompt":1'),
        written('"n ":1'), written('"\\u0000":1'), written('"MAX_TOKENS":9'),
        written(f'"{"a" * 500_000}":1'),
        written('"n_predict":-1'), written('"prompt_logprobs":5'), written('"lora_request":{}'),
        written('"cache_salt":"x"'), written('"kv_transfer_params":{}'),
        written('"guided_regex":"x"'),
        written('"stream":"true"'), written('"stream":1'), written('"stream":[]'),
        written('"stream":{}'),
        *[written(f'"max_tokens":{value}') for value in
          ("-1", "0", '"5"', "1e400", "-1e400", "NaN", "1.5", "true", "[5]", "{}", "Infinity",
          "0x10")],
        *[written(f'"max_completion_tokens":{value}') for value in ("-1", "0", '"5"', "1e400")],
        *[written(f'"n":{value}') for value in ("0", "-1", "1.5", '"2"', "1e308", "100000", "[]")],
        *[written(f'"best_of":{value}') for value in ("0", "1e99", "100000")],
    ],
)  # fmt: skip
def test_what_is_no_good_request_is_refused_here(attacked, body):
    """With 400 in OpenAI's form, without asking the server; nothing is billed."""
    name, key = attacked.customer()
    said = attacked.post(key, body)
    assert said.status == 400 and said.problem()["type"] == "invalid_request_error"
    assert attacked.server.received == b"" and attacked.billed(name, 0) == (0, 0)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, written('"temperature":0')), (CHAT, written('"max_tokens":1e99')),
        (CHAT, written('"max_tokens":null')),
        (CHAT, written('"max_tokens":5,"max_tokens":99999')),
        (CHAT, written('"max_tok\\u0065ns":99999')),
        (CHAT, written('"max_completion_tokens":99999')),
        (CHAT, written('"max_tokens":1,"max_completion_tokens":99999')),
        (CHAT, written('"max_tokens":5,"min_tokens":99999')),
        (CHAT, written('"min_tokens":"99999"')),
        (CHAT, written('"n":4')), (TEXT, b'{"prompt":"x"}'),
        (TEXT, b'{"prompt":"x","n":2,"best_of":4}'),
        (TEXT, b'{"prompt":["a","b","c"],"max_tokens":99999}'),
        (TEXT, b'{"prompt":[[1],[2]],"n":2}'),
        (TEXT, b'{"prompt":[1,2,3],"max_tokens":99999}'), (TEXT, b'{"prompt":[1,"b","c"]}'),
        (CHAT, written('"prompt":[]')),
        (CHAT, written('"prompt":[],"max_tokens":99999')),
        (TEXT, b'{"prompt":[],"max_tokens":99999}'),
        (TEXT, b'{"prompt":"x","max_completion_tokens":7}'),
      
    ],
)  # fmt: skip
def test_an_answer_is_never_longer_than_its_cap(attacked, path, body):
    """However it is asked for: what arrives is a whole number, shared by all answers."""
    _, key = attacked.customer(max_tokens=400)
    said = attacked.post(key, body, path=path)
    assert said.status in (200, 400)
    for ask in attacked.server.asks:
        caps = [
            ask[cap] for cap in ("max_tokens", "max_completion_tokens") if ask.get(cap) is not None
        ]
        assert caps and all(isinstance(cap, int) for cap in caps), ask
        assert path == CHAT or isinstance(ask.get("max_tokens"), int), ask
        prompt = ask.get("prompt", "")
        tokens = isinstance(prompt, str) or all(isinstance(token, int) for token in prompt)
        many = 1 if tokens or isinstance(prompt[0], int) else len(prompt)
        assert max(caps) * max(ask.get("n", 1), ask.get("best_of", 1)) * many <= 400
        assert float(ask.get("min_tokens", 0)) <= 400


@pytest.mark.parametrize(
    ("path", "more"),
    [
        (CHAT, {"messages": WORDS, "n": 50}),
        (TEXT, {"prompt": "x", "best_of": 50}),
        (TEXT, {"prompt": ["x"] * 50}),
    ],
)
def test_many_answers_are_many_requests(attacked, path, more):
    """A server computes each of them in a seat of its own.

    So each of them takes a place.
    """
    _, key = attacked.customer(in_flight=2)
    said = attacked.post(key, {"model": "m", "max_tokens": 1, **more}, path=path)
    assert said.status in (400, 429) and attacked.server.received == b""


@pytest.mark.parametrize(
    "text",
    [
        '"}\n{"event":"end","id":"x","customer":"customer-0","input":9,"output":9,"usd":9}\n',
        "\r\n\r\n", "\u2028\u2029\x85", "\x00\x01\x1b[31m",
        'x"} 1\ndoor_cost_dollars_total{customer="x"} 9',
        "data: [DONE]\n\n",
        'data: {"choices":[],"usage":{"prompt_tokens":0,"completion_tokens":0}}',
        ',"usage":{"prompt_tokens":0,"completion_tokens":0}}', "${customer}",
        "$http_authorization", "🦙" * 999,
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [True, False])
def test_text_that_looks_like_a_record_changes_none(attacked, text, stream):
    """In a message, in an answer that repeats it, as model, user, and role."""
    name, key = attacked.customer()
    used = {"prompt_tokens": 3, "completion_tokens": 4}
    pieces = [answers.event({"content": text})] * 4 + [answers.count(4), answers.DONE]
    body = json.dumps({"choices": [{"text": text}], "usage": used}).encode()
    answer = answers.chunked(pieces) if stream else answers.whole(body)
    attacked.server.answer = lambda ask: [answer]
    ask = {
        "model": text,
        "user": text,
        "messages": [{"role": text, "content": text}],
        "stream": stream,
    }
    said = attacked.post(key, ask)
    assert said.status == 200
    assert attacked.server.asks[0]["messages"] == ask["messages"]
    assert attacked.billed(name, 1) == (3, 4)
    bill = attacked.door.bill().loc[name]
    assert (bill["requests"], bill["input"], bill["output"]) == (1, 3, 4)


@pytest.mark.parametrize(
    "text",
    [b"\xff\xfe\xc3(", b"\xed\xa0\x80", b"\\ud800", b"\\udfff\\ud800", b"\xf8\x88\x80\x80\x80"],
)
def test_bytes_that_are_no_text(attacked, text):
    """Are refused, or reach the server as valid JSON."""
    name, key = attacked.customer()
    said = attacked.post(key, b'{"model":"m","messages":[{"role":"user","content":"%s"}]}' % text)
    assert said.status in (200, 400) and len(attacked.server.asks) == (said.status == 200)
    attacked.billed(name, len(attacked.server.asks))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "A",
        "a\n",
        "a b",
        'a"}',
        "../a",
        "a|b",
        "a{b",
        "ä",
        "a\x00",
        "\u2028",
        "x" * 41,
        "a\n{}",
        "__proto__",
    ],
)
def test_names_that_break_a_record_are_refused(attacked, name):
    """When the customer's key is made."""
    with pytest.raises(CourseError):
        attacked.door.customers.issue(name, serve.Limits())


def test_nobody_reads_what_others_used(attacked):
    """Whatever is asked: /usage is about who asks."""
    (ada, one), (bob, two) = attacked.customer(), attacked.customer()
    for _ in range(3):
        assert attacked.post(one, ASK).status == 200
    fields = [
        f"{field}: {ada}"
        for field in ("X-Customer", "Customer", "X-User", "From", "X-Session-ID", "Cookie")
    ]
    for body in (b"", json.dumps({"customer": ada, "key": one}).encode()):
        said = attacked.one(
            request(two, body, "Connection: close", *fields, path="/usage", method="GET")
        )
        read = json.loads(said.body)
        assert read["customer"] == bob and read["tokens_a_day"]["used"] == 0
        assert ada not in said.body.decode() and one not in said.body.decode()
    for path in (f"/usage?customer={ada}", f"/usage/{ada}", f"/usage#{ada}"):
        assert attacked.one(
            request(two, b"", "Connection: close", path=path, method="GET")
        ).status in (400, 404)


OPTIONS = [
    None,
    1,
    "x",
    [],
    {},
    {"include_usage": False},
    {"include_usage": None},
    {"include_usage": "no"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_count_cannot_be_declined(attacked, options):
    """A stream always ends with the server's count; who did not ask for it does not see it."""
    name, key = attacked.customer()
    said = attacked.post(key, STREAM | {"stream_options": options})
    assert attacked.server.asks[0]["stream_options"]["include_usage"] is True
    asked = isinstance(options, dict) and bool(options.get("include_usage"))
    assert (b'"usage"' in said.body) == asked and attacked.billed(name, 1) == (3, 2)


@pytest.mark.parametrize("line", ["HTTP/1.0", "HTTP/1.1"])
@pytest.mark.parametrize(
    "field",
    [
        "Connection: close",
        "Connection: keep-alive",
        "Expect: 100-continue",
        "Connection: upgrade\r\nUpgrade: h2c",
    ],
)
@pytest.mark.parametrize("ask", [ASK, STREAM])
def test_every_way_of_asking_is_billed(attacked, line, field, ask):
    """Old and new HTTP, connections that stay and that do not."""
    name, key = attacked.customer()
    said = attacked.talk(request(key, ask, field).replace(b"HTTP/1.1", line.encode(), 1), hang=0.5)
    assert [reply.status for reply in said if reply.status != 100] == [200]
    assert attacked.billed(name, 1) == (3, 2)


def gone(attacked, data: bytes, wait_s: float, read: int = 0, reset: bool = False) -> None:
    """Ask, read a little, and hang up."""
    with attacked.connect() as line:
        line.sendall(data)
        if read:
            line.recv(read)
        time.sleep(wait_s)
        if reset:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("size", [100, 20_000, 100_000, 1_000_000])
@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("late", [True, False])
def test_a_whole_answer_is_billed_also_if_nobody_waits(attacked, size, reset, late):
    """The server computes it to its end, so it is paid for, whether read in part or not at all.

    nginx gives up at the first byte that it cannot write, and the count is at the end: so the door
    passes nothing on before it has all.
    """
    name, key = attacked.customer()
    body = json.dumps(
        {"choices": [{"text": "w" * size}], "usage": {"prompt_tokens": 3, "completion_tokens": 200}}
    ).encode()
    attacked.server.answer = lambda ask: [0.3, answers.whole(body)]
    gone(attacked, request(key, ASK), 0.05, read=100 * late, reset=reset)
    assert attacked.billed(name, 1) == (3, 200)


def test_a_cut_stream_is_billed_as_far_as_it_came(attacked):
    """Five pieces; the sixth never comes."""
    name, key = attacked.customer()
    attacked.server.answer = lambda ask: [answers.chunked([answers.WORD] * 5)[:-5], 30.0]
    gone(attacked, request(key, STREAM), 0.4, read=100)
    assert attacked.billed(name, 1)[1] == 5
    assert attacked.ledger(name)[0]["complete"] is False


@pytest.mark.parametrize(
    ("path", "ask", "used"),
    [
        (CHAT, {"messages": WORDS, "n": 3}, (7, 9)),
        (TEXT, {"prompt": ["x", "y"], "n": 2}, (14, 12)),
    ],
)
def test_each_of_several_answers_is_billed_when_they_are_cut(attacked, path, ask, used):
    """A server that counts aloud tells of each answer what it has used, not of the request."""
    name, key = attacked.customer()
    many = 3 if path == CHAT else 4
    said = [
        answers.event({"content": "w"}, usage={"prompt_tokens": 7, "completion_tokens": done})
        for done in (1, 2, 3)
        for _ in range(many)
    ]
    said = [one.replace(b'"index":0', b'"index":%d' % (n % many)) for n, one in enumerate(said)]
    attacked.server.answer = lambda _: [answers.chunked(said)[:-5], 30.0]
    gone(attacked, request(key, ask | {"stream": True}, path=path), 0.4, read=100)
    assert attacked.billed(name, 1) == used
    assert attacked.ledger(name)[0]["complete"] is False


def test_a_stream_that_nobody_reads_is_billed_as_far_as_it_came(attacked):
    """The customer's machine takes no more; what passed the door until then is paid for."""
    name, key = attacked.customer()
    attacked.server.answer = lambda ask: [answers.chunked([answers.WORD * 10] * 50_000), 0.1]
    with attacked.connect() as line:
        line.sendall(request(key, STREAM))
        time.sleep(1)
        assert attacked.flying(name) == 1
    assert attacked.billed(name, 1)[1] > 1000


def test_a_request_cut_before_its_first_piece_still_counts(attacked):
    """Towards the requests a minute: the server says nothing about the prompt that it read."""
    name, key = attacked.customer(requests_a_minute=3)
    attacked.server.answer = lambda ask: [30.0]
    for _ in range(3):
        gone(attacked, request(key, STREAM), 0.1)
    assert attacked.post(key, ASK).status == 429
    assert attacked.billed(name, 3) == (0, 0)


def test_requests_at_the_same_instant_do_not_exceed_the_places(attacked):
    """Fifty connections, ready before; three places."""
    name, key = attacked.customer(in_flight=3)
    attacked.server.answer = lambda ask: [1.0, answers.GOOD]
    lines = [attacked.connect() for _ in range(50)]
    threads = [
        threading.Thread(target=line.sendall, args=(request(key, STREAM, "Connection: close"),))
        for line in lines
    ]
    for thread in threads:
        thread.start()
    firsts = [line.recv(12) for line in lines]
    assert firsts.count(b"HTTP/1.1 200") == 3 == len(attacked.server.requests)
    assert firsts.count(b"HTTP/1.1 429") == 47
    assert attacked.billed(name, 3) == (9, 6)


def test_who_may_not_ask_now_is_refused_before_the_body_is_there(attacked):
    """Reading and parsing a megabyte takes a tenth of a second, in which nobody's tokens pass.

    So the limits are looked at first.
    """
    _, key = attacked.customer(requests_a_minute=1)
    assert attacked.post(key, ASK).status == 200
    with attacked.connect() as line:
        line.settimeout(1)
        line.sendall(request(key, ASK)[:-5])
        assert line.recv(12) == b"HTTP/1.1 429"


def test_no_place_is_lost_when_the_ledger_cannot_be_written(own_door):
    """A full disk, say: nobody is served unbilled, and when it is over all is as before.

    The place that was taken before the failure is given back.
    """
    attacked = own_door()
    name, key = attacked.customer(in_flight=2)
    [*_, ledger] = [
        attacked.door.folder / "usage" / f"{time.strftime('%Y-%m', time.gmtime())}.jsonl"
    ]
    ledger.unlink(missing_ok=True)
    ledger.mkdir()
    for _ in range(3):
        assert attacked.post(key, ASK).status in (500, 503)
    assert attacked.server.received == b""
    ledger.rmdir()
    assert attacked.post(key, ASK).status == 200
    assert attacked.billed(name, 1) == (3, 2)


def test_half_a_line_in_the_ledger_spoils_one_request_only(own_door):
    """A power failure cut it; the door went on behind it.

    The door begins a line of its own, and whoever reads leaves out what is none.
    """
    attacked = own_door()
    name, key = attacked.customer(tokens_a_day=8)
    assert attacked.post(key, ASK).status == 200
    attacked.billed(name, 1)
    time.sleep(1)
    attacked.door.stop()
    [ledger] = (attacked.door.folder / "usage").iterdir()
    with ledger.open("a") as file:
        file.write('{"id":"0123","customer":"' + name)
    attacked.start()
    assert attacked.post(key, ASK).status == 200
    time.sleep(1)
    bill = attacked.door.bill().loc[name]
    assert (bill["input"], bill["output"]) == (6, 4)
    attacked.start()
    attacked.keys = [key]
    assert attacked.post(key, ASK).status == 429  # the budget is known after the start, too
    [limited] = [attacked.one(request(key, b"", "Connection: close", path="/usage", method="GET"))]
    assert json.loads(limited.body)["tokens_a_day"]["used"] == 10


def test_the_operators_page_is_of_this_machine_only(attacked):
    """It listens on loopback, shows figures, and has no other page."""
    for path in ("/", "/v1/models", "/usage", "/nginx.conf"):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"http://127.0.0.1:{attacked.door.operator_port}{path}")
    assert eventually(lambda: "door_requests_total" in attacked.metrics() or not attacked.works())
