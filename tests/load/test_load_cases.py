"""What servers send now and then, and what must not become of a load test because of it."""

import asyncio
import json
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.listening import listen

from helpers import load
from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.load import users as play
from helpers.load import workers as shards
from helpers.load.arrivals import to_spec
from helpers.load.client import stream
from helpers.load.client.general import GeneralTransport
from helpers.load.client.wire import Exchange, PlainTransport
from helpers.records import Run

QUIET = {"progress": False, "server_every_s": None}
SMALL = load.Synthetic(input_tokens=8, output_tokens=4)
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def event(delta: dict, finish: str | None = None, **more) -> bytes:
    """A streamed event as most servers write it."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    entry = {"id": "x", "choices": [choice], **more}
    return b"data: " + json.dumps(entry, separators=(",", ":")).encode() + b"\n\n"


def usage(value: str) -> bytes:
    """The event with the server's count."""
    return b'data: {"choices":[],"usage":%s}\n\n' % value.encode()


def count(tokens: int) -> bytes:
    """The usage as it should be."""
    return usage(f'{{"prompt_tokens":3,"completion_tokens":{tokens}}}')


def chunks(events: list[bytes]) -> list[bytes]:
    """A whole answer, each event a chunk."""
    framed = [b"%x\r\n%s\r\n" % (len(one), one) for one in events]
    return [HEAD, *framed[:-1], framed[-1] + b"0\r\n\r\n"]


def reply(events: list[bytes]) -> stream.Reply:
    """The answer read, a chunk a second."""
    exchange = Exchange()
    exchange.reads = chunks(events)
    exchange.times = [float(second) for second in range(len(exchange.reads))]
    return stream.read(exchange)


ROLE, WORD = event({"role": "assistant", "content": ""}), event({"content": "w"})
STOP = event({"content": ""}, "stop")
GOOD = [ROLE, WORD, WORD, STOP, count(2), DONE]


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST."""
    linger = struct.pack("ii", 1, 0)
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


@pytest.fixture
async def serve():
    """Start a server; ``answer(number, writer)`` writes the answer to each POST."""
    servers = []

    async def start(answer) -> Endpoint:
        number = 0

        async def one(body, writer):
            nonlocal number
            if body:
                number += 1
                await answer(number - 1, writer)
            else:
                writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n{"data":[]}')

        server, endpoint = await listen(one)
        servers.append(server)
        return endpoint

    yield start
    for server in servers:
        server.close()


async def good(number: int, writer: asyncio.StreamWriter) -> None:
    """What a server should answer."""
    writer.write(b"".join(chunks(GOOD)))


# Resets, and what the client is blamed for


@pytest.mark.parametrize("kind", [PlainTransport, GeneralTransport])
async def test_a_reset_after_a_wait_is_a_failure(serve, kind):
    """A server that breaks under load resets connections that waited: its user saw that."""

    async def answer(number, writer):
        await asyncio.sleep(0.3)
        reset(writer)

    transport = kind((await serve(answer)).base_url, {}, 5.0)
    await transport.warm(1)
    exchange = await transport.fetch(transport.prepare("/chat/completions", b"{}"))
    await transport.close()
    assert exchange.cause in ("reset", "closed early") and exchange.reconnects == 0
    assert exchange.end - exchange.sent > 0.25


async def test_the_time_lost_on_a_stale_connection_is_the_users(serve, tmp_path):
    """Latency counts from when the user asked, in a closed loop as well as in an open one."""

    async def answer(number, writer):
        if number % 2 == 0:
            await asyncio.sleep(0.05)
            reset(writer)
        else:
            await good(number, writer)

    endpoint = await serve(answer)
    run = await load.run(
        endpoint, SMALL, load.ClosedLoop(users=1), requests=1, path=tmp_path / "a", **QUIET
    )
    assert run.records[0].ok and run.records[0].reconnects == 1
    assert run.records[0].e2e_s > 0.05 and run.records[0].connect_s > 0.05
    run = await load.run(
        endpoint, SMALL, load.Constant(every_s=1), requests=1, path=tmp_path / "b", **QUIET
    )
    assert run.records[0].ok and run.records[0].e2e_s > 0.05 > run.records[0].lag_s


# Answers that are not as they should be

DEEP = '{"completion_tokens":' + "[" * 200_000
ODD = {
    b'data: {"choices":[],"usage":5}\n\n': "",
    usage('{"completion_tokens":null}'): "",
    usage('{"completion_tokens":"7"}'): "",
    usage('{"completion_tokens":true}'): "",
    usage('{"completion_tokens":2,"prompt_tokens":[1],"prompt_tokens_details":[1]}'): "",
    usage(DEEP): "malformed",
}
RAW = {
    b'HTTP/1.1 429 Busy\r\ncontent-length: 29\r\n\r\n{"error":"quota","usage":100}': "http 429",
    b"HTTP/1.1 429 Busy\r\nretry-after: \xb2\r\ncontent-length: 0\r\n\r\n": "http 429",
    b"HTTP/1.1 429 Busy\r\nretry-after: %s\r\ncontent-length: 0\r\n\r\n"
    % (b"9" * 5000): "http 429",
    b"HTTP/1.1 200 OK\r\ncontent-length: \xb2\r\n\r\n": "malformed",
    b"HTTP/1.1 200 OK\r\ncontent-length: %s\r\n\r\n" % (b"9" * 5000): "malformed",
}


async def test_no_answer_ends_the_run(serve, tmp_path):
    """One proxy with odd fields among thousands of good answers: its record, and no more, fails."""
    odd = [b"".join(chunks([*GOOD[:4], one, DONE])) for one in ODD] + list(RAW)

    async def answer(number, writer):
        writer.write(odd[number] if number < len(odd) else b"".join(chunks(GOOD)))

    run = await load.run(
        await serve(answer),
        SMALL,
        load.Constant(every_s=0.02),
        requests=len(odd) + 2,
        path=tmp_path / "run.jsonl",
        **QUIET,
    )
    expected = [*ODD.values(), *RAW.values(), "", ""]
    assert [record.cause for record in run.records] == expected
    assert all(r.output_tokens == 2 and r.prompt_tokens in (0, 3) for r in run.ok)
    assert not run.interrupted and "6 failed" in repr(run)


@pytest.mark.parametrize("raw", list(RAW))
async def test_odd_fields_on_the_general_transport(serve, raw):
    """Through aiohttp they are failures too, and never exceptions."""

    async def answer(number, writer):
        writer.write(raw)

    transport = GeneralTransport((await serve(answer)).base_url, {}, 5.0)
    exchange = await transport.fetch(transport.prepare("/chat/completions", b"{}"))
    await transport.close()
    assert play._read(exchange).cause == RAW[raw] and play._pause(exchange) == play.BACK_OFF_S


LATE_ERROR = event({"content": ""}, "error", error={"code": 502, "message": "gone"})


@pytest.mark.parametrize(
    ("events", "cause"),
    [
        ([b"data: {this is not json}\n\n", DONE], "malformed"),
        ([b"data: {this is not json}\n\n", WORD, STOP, DONE], "malformed"),
        ([b'data: {"choices":[{"delta":{"content":"w"}]}\n\n', DONE], "malformed"),
        ([DONE], "malformed"),
        ([ROLE, DONE], "malformed"),
        ([ROLE, STOP, DONE], "malformed"),  # no text, and no usage that would say so
        ([ROLE, WORD, LATE_ERROR, DONE], "server error"),
        ([ROLE, WORD, LATE_ERROR, count(1), DONE], "server error"),
        ([ROLE, WORD, event({}, "error"), count(1), DONE], "server error"),
        ([ROLE, STOP, count(0), DONE], ""),  # the model had nothing to say
        ([ROLE, STOP, count(1), DONE], ""),
        ([ROLE, event({"tool_calls": [{"index": 0}]}, "tool_calls"), count(9), DONE], ""),
        ([ROLE, WORD, STOP, DONE], ""),  # a server without usage
        ([ROLE, event({"content": '"error":{"a":1}'}), STOP, count(3), DONE], ""),
        ([ROLE, event({"content": "w"}, error=None), STOP, count(1), DONE], ""),
        ([b": ping\n\n", ROLE, WORD, STOP, count(1), DONE], ""),
    ],
)
def test_only_an_answer_is_a_good_answer(events, cause):
    """A server that streams rubbish, nothing or an error at full speed is not a fast server."""
    assert reply(events).cause == cause


async def test_users_pause_after_an_error_in_a_stream(serve, tmp_path):
    """Users whose answer is an error do not hammer the server, whatever status it came with."""

    async def answer(number, writer):
        writer.write(b"".join(chunks([event({}, error={"code": 503}), DONE])))

    run = await load.run(
        await serve(answer),
        SMALL,
        load.ClosedLoop(users=4),
        duration_s=0.6,
        path=tmp_path / "run.jsonl",
        **QUIET,
    )
    assert {record.cause for record in run.records} == {"server error"}
    assert len(run.records) == 4


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "", "reasoning": "w"},  # Ollama
        {"content": None, "reasoning": "w"},  # OpenRouter
        {"content": "", "reasoning_content": "w"},
        {"reasoning_content": "w", "reasoning": "w"},  # vLLM
        {"content": "", "reasoning_content": "w", "reasoning": "w"},
    ],
)
def test_reasoning_is_text(delta):
    """A thinking model's first token is that of its thoughts, counted once."""
    found = reply([*[event(delta)] * 20, *[WORD] * 5, STOP, count(25), DONE])
    assert found.token_times == [float(second) for second in range(1, 26)] and not found.cause


# How an answer's bytes are cut decides nothing


@pytest.mark.parametrize("early", [b"", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"])
async def test_a_good_answer_is_good_wherever_it_is_cut(serve, tmp_path, early):
    """A head that comes in two reads, or after an interim answer, makes no user pause."""

    async def answer(number, writer):
        data = early + b"".join(chunks(GOOD))
        writer.write(data[:5])
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(data[5:])

    run = await load.run(
        await serve(answer),
        load.Synthetic(input_tokens=8, output_tokens=4, turns=2),
        load.ClosedLoop(users=1),
        requests=4,
        path=tmp_path / "run.jsonl",
        **QUIET,
    )
    assert [record.turn for record in run.ok] == [0, 1, 0, 1]
    assert run.records[-1].end_s < 0.9  # none waited for the second that follows a failure


# What goes on around the requests


async def test_a_generator_that_dies_when_it_is_to_begin_is_said_so(tmp_path, monkeypatch):
    """Killed for its memory, say: the sentence with its last word, not a broken pipe."""
    program = """
import os, sys
sys.stdin.readline()
os.write(1, b'{"type":"ready","error":""}\\n')
sys.exit("no memory")
"""
    monkeypatch.setattr(shards, "COMMAND", ["-c", program])
    endpoint = Endpoint(base_url="http://127.0.0.1:9/v1", model="m")
    with pytest.raises(CourseError, match="ended before its run: no memory"):
        await load.run(
            endpoint,
            SMALL,
            load.ClosedLoop(users=1),
            requests=1,
            path=tmp_path / "run.jsonl",
            progress=False,  # the sampler takes its time, so that it is dead when told to go
        )


async def test_an_executor_with_too_few_workers_is_said_so(serve, tmp_path, monkeypatch):
    """Half the users a second later are not the load that was asked for."""
    monkeypatch.setattr(shards, "START_IN_S", 1.0)
    path = tmp_path / "run.jsonl"
    with ThreadPoolExecutor(1) as executor, pytest.raises(CourseError, match="too late"):
        await load.run(
            await serve(good),
            load.Synthetic(input_tokens=8, output_tokens=4),
            load.ClosedLoop(users=2, think_time_s=0.1),
            duration_s=0.5,
            processes=2,
            executor=executor,
            path=path,
            **QUIET,
        )
    assert {record.user for record in Run.read(path).records} <= {0}


async def test_an_executor_without_a_server_is_said_so(unused_tcp_port, tmp_path):
    """The one sentence, as without an executor, instead of a run full of refusals."""
    with ThreadPoolExecutor(1) as executor, pytest.raises(CourseError, match="does not answer"):
        await load.run(
            Endpoint(base_url=f"http://127.0.0.1:{unused_tcp_port}/v1", model="m"),
            SMALL,
            load.ClosedLoop(users=1),
            requests=1,
            executor=executor,
            path=tmp_path / "run.jsonl",
            **QUIET,
        )


async def prepared(endpoint, input_tokens: int, **more) -> play.Generator:
    """A generator that has built its requests ahead, and has closed its connections again."""
    spec = {
        "base_url": endpoint.base_url,
        "model": "m",
        "api_key": "none",
        "route": "/chat/completions",
        "workload": to_spec(load.Synthetic(input_tokens=input_tokens)),
        "arrivals": to_spec(load.ClosedLoop(users=2)),
        "duration_s": None,
        "timeout_s": 5.0,
        "shard": [0, 1],
    }
    generator = play.Generator(spec | more, None)
    await generator.prepare()
    await generator.transport.close()
    return generator


async def test_long_prompts_are_not_all_built_ahead(serve, monkeypatch):
    """Thousands of long prompts would fill the client's memory before the first is sent."""
    monkeypatch.setattr(play, "PREPARED_BYTES", 1 << 20)
    generator = await prepared(await serve(good), 4000, requests=400)
    sizes = [len(request) for _, _, request in generator.prepared]
    assert len(sizes) > 2 and sum(sizes) < 2 << 20


async def test_preparing_ends_before_an_agreed_time(serve):
    """Workers that must begin together do not miss it over bodies that can be built later."""
    endpoint, start_at = await serve(good), time.time() + 0.8
    generator = await prepared(endpoint, 500, requests=20_000, start_at=start_at)
    assert time.time() < start_at and 0 < len(generator.prepared) < 20_000
