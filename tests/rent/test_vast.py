"""Vast.ai's provider against the rehearsal, and against a line that misbehaves."""

import contextlib
import threading

import pytest
import requests
from aiohttp import ClientSession, web

from helpers import rehearsal
from helpers.errors import CourseError
from helpers.rent import market as providers
from helpers.rent.market import OfferFilter, OfferGone
from helpers.rent.vast import Vast
from helpers.serve.spec import ServingSpec


class BadLine:
    """A loopback proxy before the rehearsal: ``rule(request)`` may answer in its place.

    A rule returns None (pass on), a ``web.Response`` (answer this instead), or ``"lose"``
    (pass on, then cut the connection before the answer).
    """

    def __init__(self, target: str) -> None:
        self.target, self.rule, self.seen = target, lambda request: None, []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append((request.method, request.path))
        verdict = self.rule(request)
        if isinstance(verdict, web.Response):
            return verdict
        headers = {k: v for k, v in request.headers.items() if k in ("Authorization",)}
        url = self.target + request.path_qs
        async with (
            ClientSession() as session,
            session.request(
                request.method, url, data=await request.read(), headers=headers
            ) as answer,
        ):
            body = await answer.read()
            if verdict == "lose":
                request.transport.abort()
            return web.Response(body=body, status=answer.status, content_type=answer.content_type)


@pytest.fixture
def line(settings, provider):
    """A provider that reaches the rehearsal through a BadLine, and that line."""
    import asyncio

    server = rehearsal.running(settings)
    bad, ready, loop = BadLine(server.url), threading.Event(), asyncio.new_event_loop()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", bad.handle)
    runner = web.AppRunner(app)

    async def start():
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        bad.url = "http://{}:{}".format(*runner.addresses[0])
        ready.set()

    loop.create_task(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    ready.wait(10)
    yield Vast(api_key=server.token, server_url=bad.url, rehearsal=True), bad
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()
    for instance in provider.instances():
        if ":bad:" in instance.label:
            provider.destroy(instance.id)


def answering(times: int, *args, **kwargs):
    """A rule that answers the first ``times`` requests itself."""
    left = [times]

    def rule(request):
        left[0] -= 1
        return web.Response(*args, **kwargs) if left[0] >= 0 else None

    return rule


@pytest.mark.parametrize(
    "wanted",
    [
        OfferFilter(gpu=("RTX 3090", "RTX 4090")),
        OfferFilter(min_vram_gb=40),
        OfferFilter(max_usd_per_hour=0.3),
        OfferFilter(min_reliability=0.999),
        OfferFilter(min_download_mbps=2000),
        OfferFilter(min_cuda=13.0),
        OfferFilter(gpu_count=2, max_usd_per_hour=1),
        OfferFilter(verified=False, min_reliability=0.5, min_download_mbps=1, min_cuda=12),
    ],
)
def test_every_offer_satisfies_the_filter(provider, wanted):
    """What is offered is what was asked for, the cheapest first."""
    offers = provider.offers(wanted)
    assert offers
    prices = [offer.usd_per_hour for offer in offers]
    assert prices == sorted(prices)
    for offer in offers:
        assert not wanted.gpu or offer.gpu in wanted.gpu
        assert offer.gpu_count == wanted.gpu_count
        assert offer.vram_gb * 1.03 >= wanted.min_vram_gb
        assert offer.usd_per_hour <= (wanted.max_usd_per_hour or 1e9)
        assert offer.reliability >= wanted.min_reliability
        assert offer.download_mbps >= wanted.min_download_mbps
        assert offer.cuda >= wanted.min_cuda
        assert offer.verified or not wanted.verified


def test_unverified_hosts_are_left_out_by_default(provider):
    """The default filter shows verified hosts only; asking for all shows more."""
    loose = {"min_reliability": 0.5, "min_download_mbps": 1, "min_cuda": 12}
    default = provider.offers(OfferFilter(**loose))
    everything = provider.offers(OfferFilter(**loose, verified=False))
    assert all(offer.verified for offer in default)
    assert not all(offer.verified for offer in everything)


def test_price_includes_the_disk(provider):
    """More disk makes the same machine dearer."""
    small = provider.offers(OfferFilter(gpu=("L40S",), disk_gb=10))[0]
    large = provider.offers(OfferFilter(gpu=("L40S",), disk_gb=500))[0]
    assert (large.id, large.usd_per_hour > small.usd_per_hour) == (small.id, True)


def test_key_is_registered_once(provider, settings):
    """Registering again changes nothing."""
    from helpers.rent import ssh

    key = ssh.ensure_key(settings)
    provider.register_key(key)
    provider.register_key(key)
    body = key.split()[1]
    assert sum(body in row["public_key"] for row in provider.sdk.show_ssh_keys()) == 1


def test_taken_offer_is_told_as_such(provider, settings):
    """Renting what is rented raises OfferGone, so that the next one can be tried."""
    offer = provider.offers(OfferFilter(gpu=("H200",)))[0]
    machine = provider.launch(offer, ServingSpec(), "bad")
    with pytest.raises(OfferGone, match="somebody else"):
        provider.launch(offer, ServingSpec(), "bad")
    provider.destroy(machine.id)


def test_wrong_key_says_where_to_get_one(provider, settings):
    """401 becomes a sentence with the link; the key is not in it."""
    wrong = Vast(api_key="not-the-key-at-all", server_url=rehearsal.running(settings).url)
    with pytest.raises(CourseError) as caught:
        wrong.balance_usd()
    assert "does not accept VAST_API_KEY" in str(caught.value)
    assert "https://cloud.vast.ai/manage-keys/" in str(caught.value)
    assert "not-the-key-at-all" not in str(caught.value)


def test_lost_create_answer_adopts_the_rental(line):
    """The answer got lost, the machine was rented: it is found by its label, and only one."""
    provider, bad = line
    bad.rule = lambda r: "lose" if r.method == "PUT" and "/asks/" in r.path else None
    offer = provider.offers(OfferFilter(gpu=("H100 SXM",)))[0]
    machine = provider.launch(offer, ServingSpec(), "bad")
    assert machine.label.startswith("llm-course:bad:")
    assert sum(":bad:" in i.label for i in provider.instances()) == 1
    assert sum(method == "PUT" and "/asks/" in path for method, path in bad.seen) == 1


def test_interrupted_create_leaves_nothing(line):
    """Ctrl-C while renting destroys what was rented."""
    provider, _ = line
    real = provider._once.create_instance

    def interrupted(*args, **kwargs):
        real(*args, **kwargs)
        raise KeyboardInterrupt

    provider._once.create_instance = interrupted
    offer = provider.offers(OfferFilter(gpu=("H100 SXM",)))[0]
    with pytest.raises(KeyboardInterrupt):
        provider.launch(offer, ServingSpec(), "bad")
    assert not any(":bad:" in i.label for i in provider.instances())


def test_refusal_inside_a_200_is_an_error(line):
    """``success: false`` under HTTP 200 is not a rental."""
    provider, bad = line
    offer = provider.offers(OfferFilter())[0]
    body = '{"success": false, "error": "spend_rate_limit", "msg": "new account"}'
    bad.rule = lambda r: (
        web.Response(text=body, content_type="application/json") if "/asks/" in r.path else None
    )
    with pytest.raises(CourseError, match="spend_rate_limit new account"):
        provider.launch(offer, ServingSpec(), "bad")


def test_rate_limit_in_plain_text_is_waited_out(line):
    """429 with Retry-After and a body that is no JSON is retried, then the answer comes."""
    provider, bad = line
    text = "API requests too frequent: endpoint threshold=4.5"
    bad.rule = answering(4, status=429, text=text, headers={"Retry-After": "0.1"})
    assert provider.balance_usd() > 0


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ({"status": 500, "text": "oops"}, "HTTP 500, oops"),
        ({"status": 200, "text": "<html>", "content_type": "application/json"}, "does not fit"),
        ({"status": 200, "text": "{}", "content_type": "application/json"}, "does not fit"),
        ({"status": 402, "text": '{"msg": "insufficient credit"}'}, "top up at"),
    ],
)
def test_bad_answers_become_sentences(line, reply, told):
    """Whatever comes back, the reader sees one sentence and the next step."""
    provider, bad = line
    bad.rule = answering(99, **reply)
    with pytest.raises(CourseError) as caught:
        provider.balance_usd()
    assert told in str(caught.value)
    assert "try:" in str(caught.value)


def test_dead_line_becomes_a_sentence():
    """No server at all: a sentence, not a traceback of sockets."""
    with pytest.raises(CourseError, match="did not answer"):
        Vast(api_key="k", server_url="http://127.0.0.1:9").balance_usd()


def test_gone_instance_is_none_and_destroying_it_is_fine(provider):
    """Asking for, and destroying, what is not there are no errors."""
    assert provider.instance("999999") is None
    provider.destroy("999999")


def test_waiting_for_a_gone_instance_ends(provider):
    """Waiting does not go on for ever when somebody destroyed the machine."""
    with pytest.raises(CourseError, match="is gone"):
        providers.wait_running(provider, "999999")


def test_unsafe_calls_are_never_repeated(line):
    """A create that fails with 503 is sent once: the SDK alone would send it three times."""
    provider, bad = line
    offer = provider.offers(OfferFilter())[0]
    bad.rule = lambda r: web.Response(status=503) if "/asks/" in r.path else None
    with contextlib.suppress(CourseError):
        provider.launch(offer, ServingSpec(), "bad")
    assert sum("/asks/" in path for _, path in bad.seen) == 1


def test_rehearsal_says_what_it_is(provider, settings):
    """Offers, account and templates are marked: nobody takes them for real."""
    server = rehearsal.running(settings)
    head = {"Authorization": f"Bearer {server.token}"}
    user = requests.get(f"{server.url}/api/v0/users/current/", headers=head, timeout=5).json()
    assert user["rehearsal"] is True
    offers = provider.offers(OfferFilter())
    assert {o.provider for o in offers} == {"rehearsal"}
    assert all("Rehearsal" in o.location for o in offers)
