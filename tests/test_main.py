"""The command line: the whole way in one go, and the switches."""

import os
import signal
import subprocess
import sys
import time

import pytest
from support.line import reply, tamper
from support.machines import Idle
from support.waiting import eventually, ours

import helpers.__main__
from helpers import rehearsal, rent, serve
from helpers.rent.ledger import Ledger


@pytest.fixture
def run(own_rehearsal, capsys):
    """``python -m helpers WORDS`` in this process; returns what it printed."""

    def command(*words: str) -> str:
        capsys.readouterr()
        code = helpers.__main__.main(list(words))
        said = capsys.readouterr()
        assert code == 0, said.err
        return said.out

    return command


def test_rehearse_goes_the_whole_way_and_leaves_nothing(run, own_rehearsal, tmp_path, monkeypatch):
    """One command: from the account to a table and two figures, and nothing keeps running."""
    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setattr(helpers.__main__, "USERS", (1, 2))
    shown = run("rehearse")
    assert "SmolLM2-135M-Instruct, llama.cpp on" in shown
    assert "destroyed; provider: rehearsal" in shown and "your instances now: 0" in shown
    [folder] = (tmp_path / "runs").iterdir()
    assert {file.name for file in folder.glob("*.png")} == {"throughput.png", "latency.png"}
    assert [len(list(folder.glob(f"{n:04d}_users.jsonl"))) for n in (1, 2)] == [1, 1]
    assert eventually(lambda: ours(own_rehearsal.rehearsal_home) == [])


def test_ctrl_c_draws_nothing_and_leaves_nothing(own_rehearsal, tmp_path, monkeypatch):
    """Pressed twice, as people do, in the middle of the sweep: every record is kept, status 130."""
    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "runs"))
    command = [sys.executable, "-m", "helpers", "rehearse"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        assert eventually(lambda: b'"request"' in b"".join(read_all(tmp_path / "runs")), 120)
        for _ in range(2):
            os.killpg(process.pid, signal.SIGINT)  # a terminal tells the whole group
            time.sleep(0.3)
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 130, said
    assert "1 user (stopped after" in said and "0001_users.jsonl" in said
    assert "nothing is left rented or running\n" in said and "Traceback" not in said
    assert not list(tmp_path.rglob("*.png"))
    assert eventually(lambda: ours(own_rehearsal.rehearsal_home) == [])


def read_all(folder):
    """What stands in each run's file by now."""
    return [file.read_bytes() for file in folder.rglob("*.jsonl")]


def test_what_a_crashed_kernel_left_is_found_destroyed_and_forgotten(run, own_rehearsal):
    """Listed with its price, destroyed for good; and with ``--reset`` the credit is full again."""
    provider = rent.connect(own_rehearsal)
    machine = rent.guard.rent(provider, serve.ServingSpec(), "left", own_rehearsal, progress=print)
    listed = run("status")
    assert machine.id in listed
    assert "/h" in listed
    assert f"instance {machine.id} (llm-course:left:" in run("destroy")
    assert provider.instances() == []
    assert "your instances now: 0" in run("status")
    assert provider.balance_usd() < 5
    run("rehearse", "--reset")
    again = rent.connect(own_rehearsal)
    assert again.balance_usd() == 5
    assert Ledger(own_rehearsal, again.name).spent_usd() == 0


@pytest.mark.parametrize("command", ["status", "destroy"])
def test_every_provider_is_asked_and_the_silent_one_named(command, own_rehearsal, capsys):
    """One that fails hides no other, and is never taken for one with nothing rented."""
    provider = rent.connect(own_rehearsal)
    machine = provider.launch(provider.offers(rent.OfferFilter())[0], Idle(), "asked")
    ledger = Ledger(own_rehearsal, "runpod")
    ledger.note("llm-course:x:1", usd_per_hour=1, began=0)
    assert helpers.__main__.main([command]) == 1
    shown = capsys.readouterr()
    assert machine.id in shown.out and "RUNPOD_API_KEY is not set" in shown.err
    assert len(provider.instances()) == (command == "status")
    assert "at least" in shown.out and ledger.open()


def test_one_machine_that_stays_keeps_no_other(own_rehearsal, capsys, monkeypatch):
    """Destroying goes on after a failure, tells it, and ends with an error."""
    provider = rent.connect(own_rehearsal)
    offers = provider.offers(rent.OfferFilter())
    first, second = (provider.launch(offer, Idle(), "stays") for offer in offers[:2])

    def refuse(request, go):
        mine = request.method == "DELETE" and f"/{first.id}/" in request.path_url
        return reply(403, {"msg": "not now"}) if mine else go()

    tamper(monkeypatch, refuse)
    assert helpers.__main__.main(["destroy"]) == 1
    assert "not now" in capsys.readouterr().err
    assert [machine.id for machine in provider.instances()] == [first.id]
    monkeypatch.undo()
    assert second.id != first.id


def test_env_prints_nothing_else(run, monkeypatch):
    """What a shell evaluates must not contain the progress of the very first start."""

    def ensure(config):
        print("fetching the rehearsal's model")
        return rehearsal.Server("http://127.0.0.1:9", "t")

    monkeypatch.setattr(rehearsal, "ensure", ensure)
    assert run("rehearse", "--env") == "export VAST_URL=http://127.0.0.1:9 VAST_API_KEY=t\n"


def test_start_env_and_stop(run, own_rehearsal):
    """Started and stopped by hand; ``--env`` prints what the vastai program reads."""
    assert "answers at http://127.0.0.1:" in run("rehearse", "--start")
    words = run("rehearse", "--env").split()
    server = rehearsal.running(own_rehearsal)
    assert words == ["export", f"VAST_URL={server.url}", f"VAST_API_KEY={server.token}"]
    assert run("rehearse", "--stop") == "stopped\n"
    assert rehearsal.running(own_rehearsal) is None
    assert run("rehearse", "--stop") == "no rehearsal is running\n"


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"PROVIDER": "aws"}, "PROVIDER"),
        ({"MAX_USD_PER_HOUR": "-1"}, "MAX_USD_PER_HOUR"),
    ],
)
def test_wrong_settings_are_two_lines_and_status_1(env, told):
    """No traceback: what is wrong, and what to do."""
    done = subprocess.run(
        [sys.executable, "-m", "helpers", "status"],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2
