"""``vllm-router`` in front of the rehearsal's model servers."""

import asyncio
import sys
from contextlib import ExitStack
from dataclasses import replace

import pytest
from aiohttp import web

from helpers import load
from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.plots import scale as plots_fleet
from helpers.rent import guard, ssh
from helpers.serve import ServingSpec, router

pytest.importorskip("vllm_router", reason="vllm-router has ready-made wheels for Linux only")


@pytest.mark.parametrize("policy", router.POLICIES)
def test_the_routers_own_parser_takes_our_command(policy):
    """A renamed option would show only when the router does not start."""
    from vllm_router.launch_router import parse_router_args

    words = router.command(["http://127.0.0.1:1", "http://127.0.0.1:2"], policy, 3, 4)
    options = parse_router_args(words[3:])
    assert (options.policy, options.port, options.prometheus_port) == (policy, 3, 4)
    assert options.worker_urls == ["http://127.0.0.1:1", "http://127.0.0.1:2"]


async def test_requests_go_through_it(endpoint, tmp_path):
    """Records through the router are whole, and it ends with the block."""
    work, users = load.Synthetic(input_tokens=8, output_tokens=4), load.ClosedLoop(users=2)
    with router.start([endpoint], "round_robin") as front:
        run = await load.run(
            front.endpoint, work, users, requests=4, path=tmp_path / "run.jsonl", progress=False
        )
        assert [record.output_tokens for record in run.ok] == [4] * 4
    assert front.process.poll() is not None


def test_what_cannot_be_routed_is_told(endpoint):
    """A typing error gets the router's own answer."""
    told = pytest.raises(CourseError, match="invalid choice: 'best'")
    with told, router.start([endpoint], "best"):
        pass
    with pytest.raises(CourseError, match="needs servers"), router.start([]):
        pass


def test_a_router_that_does_not_start_says_why(endpoint, monkeypatch):
    """Its own last words are in the error."""
    wrong = [sys.executable, "-m", "vllm_router.launch_router", "--no-such-option"]
    monkeypatch.setattr(router, "command", lambda *given: wrong)
    with pytest.raises(CourseError, match="--no-such-option"), router.start([endpoint]):
        pass


@pytest.fixture
def replicas(provider, settings):
    """Two rented machines, and the endpoints of their servers."""
    rich = settings.model_copy(update={"budget_usd": 100})
    with ExitStack() as rentals:
        machines, endpoints = [], []
        for number in range(2):
            rented = guard.rented(
                provider, ServingSpec(), f"replica-{number}", rich, progress=print
            )
            machines.append(rentals.enter_context(rented))
            tunnel = rentals.enter_context(ssh.tunnel(machines[-1], settings))
            endpoints.append(tunnel.endpoint(poll_s=0.3))
        yield machines, endpoints


async def test_chats_stay_with_the_replica_that_has_their_history(replicas, tmp_path):
    """By its session each chat goes to one server, which finds all it has read in its cache."""
    _, endpoints = replicas
    chats = load.Synthetic(input_tokens=30, output_tokens=6, turns=3)
    found = {}
    for policy in ("consistent_hash", "round_robin"):
        with router.start(endpoints, policy) as front:
            run = await load.run(
                front.endpoint, replace(chats, seed=len(found)), load.ClosedLoop(users=3),
                requests=18, path=tmp_path / f"{policy}.jsonl", progress=False,
            )  # fmt: skip
        assert len(run.ok) == 18
        found[policy] = run
    by_chat = {(r.index, r.turn): r for r in found["consistent_hash"].records}
    for (chat, turn), record in by_chat.items():
        if turn:
            before = by_chat[chat, turn - 1]
            assert record.cached_tokens >= before.prompt_tokens - 2, "it went to the other one"


async def test_one_joins_and_one_is_killed_in_mid_run(provider, replicas, tmp_path):
    """Lost are at most the requests that ran on the killed one, each with its cause."""
    machines, endpoints = replicas
    with router.start(endpoints[:1], "round_robin") as front:
        work = load.Synthetic(input_tokens=8, output_tokens=24)
        through = load.run(
            front.endpoint, work, load.ClosedLoop(users=6), duration_s=14,
            path=tmp_path / "run.jsonl", progress=False,
        )  # fmt: skip
        running = asyncio.create_task(through)
        await asyncio.sleep(5)
        await asyncio.to_thread(front.add, endpoints[1])
        deadline = asyncio.get_running_loop().time() + 10
        there = None
        while not (there and there["running"] and there["output_tokens_total"] > 24):
            assert asyncio.get_running_loop().time() < deadline, "nothing came to the new one"
            await asyncio.sleep(0.1)
            there = await asyncio.to_thread(load.server_metrics, endpoints[1])
        await asyncio.to_thread(provider.destroy, machines[1].id)
        run = await running
    lost = [record for record in run.records if not record.ok]
    assert len(lost) <= 6 and all(record.cause and record.error for record in lost)
    if lost:  # all of them were under way when the first one broke: nothing was lost afterwards
        broke = min(record.end_s for record in lost)
        assert max(record.sent_s for record in lost) <= broke
        # Those that its own metrics counted just before, and those sent since that reading.
        since = sum(broke - 1 <= record.sent_s <= broke for record in run.records)
        assert len(lost) <= there["running"] + since
        after = [record for record in run.ok if record.sent_s > broke]
        assert len(after) >= 3, "the others went on"
    assert run.ok and all(record.output_tokens == 24 for record in run.ok)
    figure = plots_fleet.events(run, {"joined": 5.0})
    assert figure.get_suptitle().startswith(f"{len(lost)} of {len(run.records)} requests w")


async def test_without_a_session_the_hash_sends_everything_to_one_server(aiohttp_pair):
    """What the text warns of, and why the load generator sends a session."""
    endpoints, seen = aiohttp_pair
    started = router.start(endpoints, "consistent_hash")
    with ExitStack() as stack:
        front = await asyncio.to_thread(stack.enter_context, started)  # it asks our servers
        ask = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
        client = front.endpoint.client()
        for chat in range(12):
            await asyncio.to_thread(client.chat.completions.create, user=f"chat-{chat}", **ask)
        assert sorted((seen[0], seen[1])) == [0, 12]
        seen.update({0: 0, 1: 0})
        for chat in range(24):
            session = {"X-Session-ID": f"chat-{chat}"}
            await asyncio.to_thread(client.chat.completions.create, extra_headers=session, **ask)
        assert min(seen[0], seen[1]) > 0


@pytest.fixture
async def aiohttp_pair():
    """Two servers that answer at once, and how many requests each has seen."""
    seen, runners, endpoints = {}, [], []
    answer = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
    answer["choices"] = [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi"}}
    ]
    for number in range(2):

        async def complete(request, number=number):
            seen[number] += 1
            seen["session"] = request.headers.get("X-Session-ID")
            return web.json_response(answer)

        async def health(request):
            return web.json_response({"data": [{"id": "m"}]})

        app, seen[number] = web.Application(), 0
        app.router.add_post("/v1/chat/completions", complete)
        app.router.add_get("/{anything:.*}", health)
        runners.append(web.AppRunner(app))
        await runners[-1].setup()
        await web.TCPSite(runners[-1], "127.0.0.1", 0).start()
        port = runners[-1].addresses[0][1]
        endpoints.append(Endpoint(base_url=f"http://127.0.0.1:{port}/v1", model="m"))
    yield endpoints, seen
    for runner in runners:
        await runner.cleanup()
