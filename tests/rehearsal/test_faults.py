"""Every fault the rehearsal can provoke: what the reader sees, and what is left behind.

| fault | what is shown | what is left |
|---|---|---|
| api_401 | the key is not accepted, and where to make one | nothing rented |
| api_404 | nothing: asked again before it is believed | the instance, until it is really gone |
| api_429, api_cut, api_slow | nothing: waited out, asked again | the answer |
| api_500, api_malformed | a sentence with the next step | nothing rented |
| create_lost | nothing: found by its label | exactly one instance |
| offer_taken | "was taken by somebody else, trying the next offer" | one instance, the next offer |
| no_credit | where to top up | nothing rented |
| stuck, image_failure | the host's state and log; "destroyed" | one instance, on another host |
| model_failure, out_of_memory | the end of the server's log and its remedy | the instance |
| ssh_late | "failed" while waiting | the instance |
| host_key | "has changed: this may be another machine" | nothing sent to it |
| tunnel_drop | records with their cause; the tunnel comes back | every record |
| outbid, host_lost | records with their cause; a failed instance | every record; a replacement |
"""

import asyncio

import pytest
from support.waiting import eventually

from helpers import load, rehearsal, rent
from helpers.errors import CourseError
from helpers.rehearsal.faults import FAULTS
from helpers.rent import guard, ssh
from helpers.rent.market import OfferFilter
from helpers.serve.spec import ServingSpec


@pytest.fixture(scope="module")
def market(settings, tmp_path_factory):
    """Settings and provider of a rehearsal of this module's own, whose luck is bad."""
    home = tmp_path_factory.mktemp("faults") / "rehearsal"
    mine = settings.model_copy(update={"rehearsal_home": home})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REHEARSAL_HOME", str(home))
        yield mine, rent.connect(mine)
        rehearsal.stop(mine)


@pytest.fixture
def bad(market):
    """Arm faults; afterwards nothing may be rented, and every fault must have been used up."""
    mine, provider = market
    server = rehearsal.running(mine)
    yield lambda name: rehearsal.provoke(mine, name)
    left = server.call("GET", "/rehearsal").json()["armed"]
    for instance in provider.instances():
        guard.destroy(provider, instance.id)
    assert left == {}, "a fault was armed and never happened"


def hire(market, label="bad", **options):
    """Rent, and return the instance and every line that was shown."""
    mine, provider = market
    shown = []
    options = {"progress": shown.append, "loading_timeout_s": 4, **options}
    return guard.rent(provider, ServingSpec(), label, mine, **options), "\n".join(shown)


def test_every_fault_has_a_row_and_a_test():
    """The table above names each fault, and this file uses each."""
    from pathlib import Path

    text = Path(__file__).read_text()
    for name in FAULTS:
        assert name in __doc__
        assert text.count(f'"{name}"') >= 1


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("api_401", "https://cloud.vast.ai/manage-keys/"),
        ("api_500", "https://status.vast.ai"),
        ("api_malformed", "run the cell again"),
    ],
)
def test_refused_or_broken_calls_are_told(market, bad, fault, told):
    """One sentence with the next step; nothing is rented; the next call works."""
    bad(fault)
    with pytest.raises(CourseError) as caught:
        hire(market)
    assert told in str(caught.value)
    assert market[1].instances() == []


@pytest.mark.parametrize("fault", ["api_429", "api_cut", "api_slow"])
def test_passing_trouble_is_waited_out(market, bad, fault):
    """The reader sees nothing of it."""
    bad(fault)
    assert market[1].balance_usd() > 0


def test_one_odd_404_is_not_the_end_of_all_charges(market, bad):
    """destroy() looks twice before it says that nothing is left."""
    provider = market[1]
    machine, _ = hire(market)
    real = provider.destroy
    provider.destroy = lambda number: bad("api_404")  # the service ignores us, then is confused
    try:
        with pytest.raises(CourseError, match="is still there"):
            guard.destroy(provider, machine.id, timeout_s=1.5)
    finally:
        provider.destroy = real


def test_lost_answer_of_a_rental(market, bad):
    """Found by its label: one instance, no error."""
    bad("create_lost")
    machine, _ = hire(market)
    assert [i.id for i in market[1].instances()] == [machine.id]


def test_offer_taken(market, bad):
    """The next best is rented."""
    bad("offer_taken")
    offers = market[1].offers(OfferFilter())
    machine, shown = hire(market)
    assert "was taken by somebody else, trying the next offer" in shown
    assert machine.gpu == offers[1].gpu


def test_no_credit(market, bad):
    """Where to top up; nothing is rented."""
    bad("no_credit")
    with pytest.raises(CourseError, match=r"lacks credit\ntry: top up at https"):
        hire(market)
    assert market[1].instances() == []


@pytest.mark.parametrize(
    ("fault", "told"), [("stuck", "is loading after"), ("image_failure", "cuda>=13.0")]
)
def test_machine_that_does_not_come_up(market, bad, fault, told):
    """It is destroyed and another host is tried."""
    bad(fault)
    offers = market[1].offers(OfferFilter())
    machine, shown = hire(market)
    assert told in shown
    assert "destroyed" in shown
    assert machine.gpu == offers[1].gpu
    assert [i.id for i in market[1].instances()] == [machine.id]


def test_three_bad_hosts_are_enough(market, bad):
    """It does not go through the whole market: three reasons are shown, nothing is left."""
    for _ in range(guard.HOSTS_TRIED):
        bad("image_failure")
    with pytest.raises(CourseError) as caught:
        hire(market)
    assert str(caught.value).count("cuda>=13.0") == guard.HOSTS_TRIED
    assert market[1].instances() == []


@pytest.mark.parametrize(
    ("fault", "told"),
    [("out_of_memory", "rent a GPU with more VRAM"), ("model_failure", "does not reach Hugging")],
)
def test_model_server_that_gives_up(market, bad, fault, told):
    """The end of its log and the remedy are shown at once, not after half an hour."""
    mine, provider = market
    bad(fault)
    machine, _ = hire(market)
    with ssh.tunnel(machine, mine) as tunnel, pytest.raises(CourseError) as caught:
        tunnel.endpoint(poll_s=0.3, timeout_s=20, log=lambda: provider.logs(machine.id, 20))
    assert "the model server gave up" in caught.value.what
    assert told in caught.value.hint


def test_late_ssh_server_is_waited_for(market, bad):
    """The machine runs, SSH refuses for a while."""
    bad("ssh_late")
    machine, shown = hire(market)
    assert "failed" in shown
    assert ssh.run(machine, market[0], "echo in") == "in\n"


def test_changed_host_key(market, bad):
    """Nothing is sent to a machine that cannot prove to be the one we know."""
    mine, provider = market
    machine, _ = hire(market)
    rehearsal.provoke(mine, "host_key")
    again = rent.wait_running(provider, machine.id, progress=print)
    with pytest.raises(CourseError, match="has changed"):
        ssh.run(again, mine, "true")


@pytest.mark.parametrize("fault", ["tunnel_drop", "outbid", "host_lost"])
async def test_trouble_in_the_middle_of_a_benchmark(market, bad, tmp_path, fault):
    """Requests in flight become records with their cause; what was measured is kept."""
    mine, provider = market
    provider.register_key(ssh.ensure_key(mine))
    wanted = OfferFilter(interruptible=True)
    offer = provider.offers(wanted)[0]
    machine = provider.launch(offer, ServingSpec(), fault, bid_usd_per_hour=1.0)
    machine, _ = hire(market, fault)
    with ssh.tunnel(machine, mine) as tunnel:
        endpoint = tunnel.endpoint(poll_s=0.3)
        file = tmp_path / "run.jsonl"
        workload = load.Synthetic(input_tokens=8, output_tokens=16)
        running = asyncio.create_task(
            load.run(
                endpoint,
                workload,
                load.ClosedLoop(users=4),
                requests=100_000,
                path=file,
                allow_partial=True,
            )
        )

        async def written(what: bytes, count: int) -> None:
            while not file.exists() or file.read_bytes().count(what) < count:
                await asyncio.sleep(0.1)

        await asyncio.wait_for(written(b'"finish":"length"', 4), 120)
        await asyncio.to_thread(rehearsal.provoke, mine, fault)
        await asyncio.wait_for(written(b'"error":"', 4), 120)
        running.cancel()
        run = await running
        failed = [record for record in run.records if not record.ok]
        assert sum(record.ok for record in run.records) >= 4
        assert len(failed) >= 4
        assert all(record.cause for record in failed)
        if fault == "tunnel_drop":
            assert eventually(lambda: tunnel.up)
            return
    broken = provider.instance(machine.id)
    assert broken.status == "failed"
    assert fault.removeprefix("host_") in broken.detail
    again, shown = hire(market, fault)
    assert again.id != machine.id
    assert "it is destroyed" in shown
