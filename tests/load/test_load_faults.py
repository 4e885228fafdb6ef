"""The load generator against servers and settings that are not as they should be."""

import asyncio
import json
import time
from dataclasses import replace
from email.utils import formatdate

import pytest
from support.listening import listen

from helpers import load
from helpers.endpoint import Endpoint
from helpers.load import workers as shards

QUIET = {"progress": False, "server_every_s": None}
SMALL = load.Synthetic(input_tokens=8, output_tokens=4)
TOKEN = b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"length"}]}\n\n'
DONE = b"data: [DONE]\n\n"
WRONG_CHUNK = (  # it ends as a stream does, but its chunks do not add up
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n" + TOKEN + b"\r\n"
    b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
)


def whole(body: bytes, status: str = "200 OK", *fields: str) -> bytes:
    """An HTTP answer."""
    head = "\r\n".join([f"HTTP/1.1 {status}", *fields, f"content-length: {len(body)}", "", ""])
    return head.encode() + body


@pytest.fixture
async def serve():
    """Start a server; ``answer(body)`` gives the bytes of each answer."""
    servers = []

    async def start(answer, owner: str = "somebody", hang_up: bool = False) -> Endpoint:
        models = whole(json.dumps({"data": [{"id": "m", "owned_by": owner}]}).encode())

        async def one(body, writer):
            writer.write(answer(json.loads(body)) if body else models)
            return bool(body) and hang_up

        server, endpoint = await listen(one)
        servers.append(server)
        return endpoint

    yield start
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    ("owner", "known"),
    [
        ("vllm", {"ignore_eos", "min_tokens"}),
        ("llamacpp", {"ignore_eos"}),
        ("a hosted API", set()),
    ],
)
async def test_a_server_gets_only_the_fields_it_knows(serve, tmp_path, owner, known):
    """One that refuses unknown fields, as hosted APIs do, refuses nothing; none misses its own."""
    seen = set()

    def answer(asked):
        seen.update(asked.keys() & {"ignore_eos", "min_tokens"})
        if seen - known:
            return whole(b'{"error":{"message":"unknown field"}}', "400 Bad Request")
        return whole(TOKEN + DONE)

    run = await load.run(
        await serve(answer, owner),
        SMALL,
        load.ClosedLoop(users=2),
        requests=4,
        path=tmp_path / "run.jsonl",
        **QUIET,
    )
    assert len(run.ok) == 4 and seen == known


@pytest.mark.parametrize(
    "body",
    [
        b"data: {not json}\n\n" + TOKEN + DONE,
        b'data: {"choices":[{"delta":null}]}\n\n' + TOKEN + DONE,
        b'data: {"choices":[5]}\n\n' + TOKEN + DONE,
        b'data: {"choices":[{"delta":{"content":5}}]}\n\n' + TOKEN + DONE,
        b"data: {\xff\xfe}\n\n" + DONE,
        b"",
        WRONG_CHUNK,
    ],
)
async def test_a_conversation_survives_a_malformed_answer(serve, tmp_path, body):
    """An answer that cannot become history ends its conversation, not the run."""
    run = await load.run(
        await serve(lambda asked: body if body == WRONG_CHUNK else whole(body)),
        load.Synthetic(input_tokens=8, output_tokens=4, turns=2),
        load.ClosedLoop(users=2),
        requests=6,
        path=tmp_path / "run.jsonl",
        **QUIET,
    )
    assert len(run.records) == 6 and not run.interrupted


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [("0.5", 0.5, 0.5), ("3600", 3600, 3600), ("date", 28, 31), ("soon", None, None)],
)
async def test_retry_after_is_kept_and_never_outlasts_the_run(serve, tmp_path, value, low, high):
    """Seconds and dates are recorded; a user who was told to wait for an hour ends with the run."""
    if value == "date":
        value = formatdate(time.time() + 30, usegmt=True)
    run = await asyncio.wait_for(
        load.run(
            await serve(lambda asked: whole(b"busy", "429 Too Many", f"retry-after: {value}")),
            SMALL,
            load.ClosedLoop(users=2),
            duration_s=0.8,
            path=tmp_path / "run.jsonl",
            **QUIET,
        ),
        15,
    )
    found = {record.retry_after_s for record in run.records}
    assert {record.cause for record in run.records} == {"http 429"}
    assert found == {None} if low is None else all(low <= seconds <= high for seconds in found)
    assert run.ends[0]["wall_s"] < 3


async def test_a_server_that_repeats_the_key_puts_it_in_no_file(serve, tmp_path):
    """A refusal that quotes the key is recorded without it."""
    refusal = whole(b'{"error":{"message":"wrong key: pl4nted-k3y"}}', "401 Unauthorized")
    endpoint = replace(await serve(lambda asked: refusal), api_key="pl4nted-k3y")
    path = tmp_path / "run.jsonl"
    run = await load.run(
        endpoint, SMALL, load.Constant(every_s=0.01), requests=2, path=path, **QUIET
    )
    assert [record.cause for record in run.records] == ["http 401"] * 2
    assert "wrong key: ***" in run.records[0].error and "pl4nted" not in path.read_text()


async def test_a_server_that_is_gone_ends_the_run(serve, tmp_path, monkeypatch):
    """Nothing but dead connections for a while: the run says so and is not taken for complete."""
    program = (
        "import helpers.load.users\nhelpers.play.GIVE_UP_S = 0.3\n"
        "from helpers.load.generator import main\nmain()"
    )
    monkeypatch.setattr(shards, "COMMAND", ["-c", program])
    run = await load.run(
        await serve(lambda asked: b"", hang_up=True),
        SMALL,
        load.Constant(every_s=0.05),
        requests=1000,
        path=tmp_path / "run.jsonl",
        **QUIET,
    )
    assert 2 < len(run.records) < 500 and run.interrupted and "the server was gone" in repr(run)
