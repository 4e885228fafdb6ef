"""The stock ``vastai`` program, and bids, against the rehearsal's first door."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.waiting import eventually

from helpers import rehearsal
from helpers.rent import guard
from helpers.rent.market import OfferFilter
from helpers.serve.spec import ServingSpec

VASTAI = str(Path(sys.executable).parent / "vastai")


@pytest.fixture
def vastai(settings, provider, home):
    """Run Vast.ai's own command-line program against the rehearsal."""
    server = rehearsal.running(settings)
    env = {**os.environ, "VAST_URL": server.url, "VAST_API_KEY": server.token}

    def run(*words, raw=True):
        command = [VASTAI, *words, *(["--raw"] if raw else [])]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)

    return run


def test_stock_vastai_rents_shows_and_destroys(vastai):
    """Search, create, show, stop, start, log and destroy, as typed from Vast's own manual."""
    query = "gpu_name=RTX_4090 num_gpus=1 dph_total<0.6"
    offers = json.loads(vastai("search", "offers", query, "-o", "dph_total").stdout)
    assert [o["gpu_name"] for o in offers] == ["RTX 4090", "RTX 4090"]
    assert offers[0]["dph_total"] <= offers[1]["dph_total"]
    shown = vastai("search", "offers", query, raw=False).stdout
    assert "RTX_4090" in shown

    onstart = "echo booted; vllm serve some/model --port 8000"
    words = ["--image", "vllm/vllm-openai:latest", "--disk", "40", "--ssh", "--direct"]
    answer = vastai("create", "instance", str(offers[0]["id"]), *words, "--onstart-cmd", onstart)
    number = str(json.loads(answer.stdout)["new_contract"])
    try:
        again = vastai("create", "instance", str(offers[0]["id"]), *words)
        assert "no_such_ask" in again.stdout + again.stderr

        def state():
            return json.loads(vastai("show", "instance", number).stdout)["actual_status"]

        assert eventually(lambda: state() == "running")
        assert number in vastai("show", "instances").stdout
        assert "booted" in vastai("logs", number).stdout
        vastai("stop", "instance", number)
        assert state() == "exited"
        vastai("start", "instance", number)
        assert eventually(lambda: state() == "running")
    finally:
        gone = vastai("destroy", "instance", number, "-y", raw=False)
    assert "destroying" in gone.stdout
    assert number not in vastai("show", "instances").stdout


def test_stock_vastai_with_a_wrong_key_is_refused(vastai, settings):
    """A wrong key gets Vast's own 401."""
    env = {**os.environ, "VAST_URL": rehearsal.running(settings).url, "VAST_API_KEY": "wrong"}
    done = subprocess.run([VASTAI, "show", "user"], env=env, capture_output=True, text=True)
    assert "Invalid user key" in done.stdout + done.stderr


def test_interruptible_offers_are_rented_by_bid(provider):
    """A bid under the minimum is refused, one above it rents at that price."""
    offer = provider.offers(OfferFilter(gpu=("L40S",), interruptible=True))[0]
    on_demand = provider.offers(OfferFilter(gpu=("L40S",)))[0]
    assert offer.usd_per_hour < on_demand.usd_per_hour
    with pytest.raises(Exception, match=r"bid 0\.01 is under"):
        provider.launch(offer, ServingSpec(), "bid", bid_usd_per_hour=0.01)
    machine = provider.launch(offer, ServingSpec(), "bid", bid_usd_per_hour=0.35)
    assert machine.usd_per_hour == pytest.approx(0.35 + machine.stopped_usd_per_hour)
    guard.destroy(provider, machine.id)
