"""Users and schedules: what they ask, when they pause, and what must not end a run."""

import asyncio
import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from support.answers import DONE, GOOD, ROLE, STOP, WORD, chunked, event, usage, whole
from support.listening import listen

from helpers import load
from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.load import users, workers
from helpers.load.workload import to_spec
from helpers.records import Run

QUIET = {"progress": False, "server_every_s": None}
SMALL = load.Synthetic(input_tokens=8, output_tokens=4)
TOKEN = b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"length"}]}\n\n'
WRONG_CHUNK = (  # it ends as a stream does, but its chunks do not add up
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n" + TOKEN + b"\r\n"
    b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
)


@pytest.fixture
async def serve():
    """Start a server; ``answer(body)`` gives the bytes of each answer, or a list of pieces."""
    servers = []

    async def start(answer: Callable, owner: str = "somebody", hang_up: bool = False) -> Endpoint:
        models = whole(json.dumps({"data": [{"id": "m", "owned_by": owner}]}).encode())

        async def one(body, writer):
            data = answer(json.loads(body)) if body else models
            for piece in data if isinstance(data, list) else [data]:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.02 * isinstance(data, list))
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
        ("llamacpp", {"ignore_eos", "min_tokens"}),
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
        requests=4,
        path=tmp_path / "run.jsonl",
        **QUIET,
    )
    assert len(run.records) == 4 and not run.interrupted


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0.5", 0.5), ("3600", 3600), ("soon", None)],
)
async def test_retry_after_is_kept_and_never_outlasts_the_run(serve, tmp_path, value, seconds):
    """Seconds are recorded; a user who was told to wait for an hour ends with the run."""
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
    assert found == {seconds}
    assert run.ends[0]["wall_s"] < 3


async def test_a_server_that_repeats_the_key_puts_it_in_no_file(serve, tmp_path):
    """A refusal that quotes the key is recorded without it."""
    refusal = whole(b'{"error":{"message":"wrong key: pl4nted-k3y"}}', "401 Unauthorized")
    endpoint = replace(await serve(lambda asked: refusal), api_key="pl4nted-k3y")
    path = tmp_path / "run.jsonl"
    run = await load.run(
        endpoint, SMALL, load.Gamma(rate_per_s=100), requests=2, path=path, **QUIET
    )
    assert [record.cause for record in run.records] == ["http 401"] * 2
    assert "wrong key: ***" in run.records[0].error and "pl4nted" not in path.read_text()


async def test_a_server_that_is_gone_ends_the_run(serve, tmp_path, monkeypatch):
    """Nothing but dead connections for a while: the run says so and is not taken for complete."""
    program = (
        "import helpers.load.users\nhelpers.load.users.GIVE_UP_S = 0.3\n"
        "from helpers.load.generator import main\nmain()"
    )
    monkeypatch.setattr(workers, "COMMAND", ["-c", program])
    with pytest.raises(CourseError, match=r"the server was gone after .*run\.jsonl\n.*rented"):
        await load.run(
            await serve(lambda asked: b"", hang_up=True),
            SMALL,
            load.Poisson(rate_per_s=20),
            requests=1000,
            path=tmp_path / "run.jsonl",
            **QUIET,
        )
    run = Run.read(tmp_path / "run.jsonl")
    assert 2 < len(run.records) < 500 and run.interrupted and "the server was gone" in repr(run)


async def test_users_pause_after_an_error_in_a_stream(serve, tmp_path):
    """Users whose answer is an error do not hammer the server, whatever status it came with."""

    body = chunked([event({}, error={"code": 503}), DONE])
    run = await load.run(
        await serve(lambda asked: body),
        SMALL,
        load.ClosedLoop(users=4),
        duration_s=0.6,
        path=tmp_path / "run.jsonl",
        **QUIET,
    )
    assert {record.cause for record in run.records} == {"server error"}
    assert len(run.records) == 4


@pytest.mark.parametrize("early", [b"", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"])
async def test_a_good_answer_is_good_wherever_it_is_cut(serve, tmp_path, early):
    """A head that comes in two reads, or after an interim answer, makes no user pause."""

    data = early + GOOD
    run = await load.run(
        await serve(lambda asked: [data[:5], data[5:]]),
        load.Synthetic(input_tokens=8, output_tokens=4, turns=2),
        load.ClosedLoop(users=1),
        requests=4,
        path=tmp_path / "run.jsonl",
        **QUIET,
    )
    assert [record.turn for record in run.ok] == [0, 1, 0, 1]
    assert run.records[-1].end_s < 0.9  # none waited for the second that follows a failure


ODD = {
    b'HTTP/1.1 429 Busy\r\ncontent-length: 29\r\n\r\n{"error":"quota","usage":100}': "http 429",
    b"HTTP/1.1 429 Busy\r\nretry-after: \xb2\r\ncontent-length: 0\r\n\r\n": "http 429",
    b"HTTP/1.1 429 Busy\r\nretry-after: %s\r\ncontent-length: 0\r\n\r\n"
    % (b"9" * 5000): "http 429",
    b"HTTP/1.1 200 OK\r\ncontent-length: \xb2\r\n\r\n": "malformed",
    chunked([ROLE, WORD, WORD, STOP, usage("5"), DONE]): "",
    chunked([ROLE, WORD, STOP, usage('{"completion_tokens":' + "[" * 200_000), DONE]): "malformed",
}


async def test_no_answer_ends_the_run(serve, tmp_path):
    """One proxy with odd fields among thousands of good answers: its record, and no more, fails."""
    answers = iter([*ODD, GOOD, GOOD])
    run = await load.run(
        await serve(lambda asked: next(answers)),
        SMALL,
        load.Gamma(rate_per_s=50, burstiness=1e6),
        requests=len(ODD) + 2,
        path=tmp_path / "run.jsonl",
        **QUIET,
    )
    assert [record.cause for record in run.records] == [*ODD.values(), "", ""]
    assert all(record.output_tokens == 2 for record in run.ok)
    assert not run.interrupted and "5 failed" in repr(run)


async def prepared(endpoint, input_tokens: int, **more) -> users.Generator:
    """A generator that has built its requests ahead, and has closed its connections again."""
    spec = {
        "base_url": endpoint.base_url,
        "model": "m",
        "api_key": "none",
        "workload": to_spec(load.Synthetic(input_tokens=input_tokens)),
        "arrivals": to_spec(load.ClosedLoop(users=2)),
        "duration_s": None,
        "timeout_s": 5.0,
        "shard": [0, 1],
    }
    generator = users.Generator(spec | more, lambda line: None)
    await generator.prepare()
    await generator.transport.close()
    return generator


async def test_long_prompts_are_not_all_built_ahead(serve, monkeypatch):
    """Thousands of long prompts would fill the client's memory before the first is sent."""
    monkeypatch.setattr(users, "PREPARE_S", 0.1)
    generator = await prepared(await serve(lambda asked: GOOD), 4000, requests=4000)
    assert 2 < len(generator.prepared) < 2000 and generator.ahead == len(generator.prepared)


async def test_requests_stay_ready(serve, monkeypatch):
    """What was sent is built anew in the pauses: built when due, it would delay a whole burst."""
    monkeypatch.setattr(users, "PREPARE_S", 0.1)
    generator = await prepared(await serve(lambda asked: GOOD), 4000, requests=4000)
    ahead, sent = generator.ahead, [generator.prepared.popleft() for _ in range(3)]
    generator._build_ahead(until=0.0)
    assert len(generator.prepared) == ahead - 3  # nothing, when there is no time
    generator._build_ahead(until=math.inf)
    numbers = [number for number, *_ in (*sent, *generator.prepared)]
    assert len(generator.prepared) == ahead and numbers == list(range(ahead + 3))
    generator.left = ahead - 1
    generator.prepared.pop()
    generator._build_ahead(until=math.inf)
    assert len(generator.prepared) == ahead - 1  # and no more than the run will ask


async def test_users_begin_spread_and_a_run_may_be_enough(paced, tmp_path):
    """Nobody begins early; once it is enough, what is in flight is cut off and is no failure."""
    run = await load.run(
        paced("--ttft", "0.05", "--itl", "0.02"),
        load.Synthetic(input_tokens=8, output_tokens=50),
        load.ClosedLoop(users=4, spread_s=0.8),
        duration_s=60,
        enough=lambda seconds, path: seconds > 1.5 and path.exists(),
        path=tmp_path / "run.jsonl",
        **QUIET,
    )
    begins = {record.user: record.origin_s for record in reversed(run.records)}
    assert all(begins[user] >= 0.2 * user for user in range(4)), begins
    assert not run.interrupted and not run.failed
    cut = [record for record in run.records if record.cause == "interrupted"]
    assert len(cut) == 4 and any(record.token_us for record in cut)
