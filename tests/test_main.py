"""The command line: the whole way in one go, and the switches."""

import os
import subprocess
import sys

import pytest

from helpers import rehearsal
from helpers.rent import guard
from helpers.rent import market as providers
from helpers.serve.spec import ServingSpec


def run(*words, **env):
    """``python -m helpers WORDS``."""
    return subprocess.run(
        [sys.executable, "-m", "helpers", *words],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_rehearse_goes_the_whole_way_and_leaves_nothing(own_rehearsal, tmp_path):
    """One command: from the account to a table and two figures, and nothing keeps running."""
    from support.waiting import ours

    done = run("rehearse", RUNS_DIR=str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    assert "SmolLM2-135M-Instruct, llama.cpp on" in done.stdout
    assert "destroyed; still rented: 0" in done.stdout
    [folder] = (tmp_path / "runs").iterdir()
    assert {file.name for file in folder.glob("*.png")} == {"throughput.png", "latency.png"}
    assert [len(list(folder.glob(f"{n:04d}_users.jsonl"))) for n in (1, 2, 4, 8, 16)] == [1] * 5
    assert ours(own_rehearsal.rehearsal_home) == []


def test_status_and_destroy_find_a_crashed_kernels_instance(own_rehearsal):
    """What a kernel left behind is listed with its price, and destroyed for good."""
    provider = providers.connect(own_rehearsal)
    machine = guard.rent(provider, ServingSpec(), "left", own_rehearsal, progress=print)
    listed = run("status").stdout
    assert machine.id in listed
    assert "/h" in listed
    assert f"instance {machine.id} (llm-course:left:" in run("destroy").stdout
    assert provider.instances() == []
    assert run("status").stdout == "nothing is rented\n"


def test_start_env_and_stop(own_rehearsal):
    """The rehearsal is started and stopped by hand; --env prints what the vastai program reads."""
    assert "answers at http://127.0.0.1:" in run("rehearse", "--start").stdout
    words = run("rehearse", "--env").stdout.split()
    server = rehearsal.running(own_rehearsal)
    assert words == ["export", f"VAST_URL={server.url}", f"VAST_API_KEY={server.token}"]
    assert run("rehearse", "--stop").stdout == "stopped\n"
    assert rehearsal.running(own_rehearsal) is None
    assert run("rehearse", "--stop").stdout == "no rehearsal is running\n"


def test_reset_refills_the_pretend_credit(own_rehearsal):
    """Who has used up the pretend credit or budget begins anew."""
    provider = providers.connect(own_rehearsal)
    machine = guard.rent(provider, ServingSpec(), "spend", own_rehearsal, progress=print)
    guard.destroy(provider, machine.id)
    assert provider.balance_usd() < 5
    assert run("rehearse", "--reset").returncode == 0
    again = providers.connect(own_rehearsal)
    assert again.balance_usd() == 5
    assert guard.Ledger(own_rehearsal, again).spent_usd() == 0


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"PROVIDER": "aws"}, "PROVIDER"),
        ({"MAX_USD_PER_HOUR": "-1"}, "MAX_USD_PER_HOUR"),
    ],
)
def test_wrong_settings_are_two_lines_and_status_1(env, told):
    """No traceback: what is wrong, and what to do."""
    done = run("status", **env)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2
