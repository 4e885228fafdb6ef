"""The rehearsal's process: who may command it, and that nothing outlives it."""

import os
import signal
import subprocess
import sys

import pytest
import requests
from support.machines import Idle
from support.waiting import eventually, on_machines, ours

from helpers import rehearsal, rent, settings
from helpers.errors import CourseError
from helpers.rent import guard, ssh
from helpers.rent.market import OfferFilter
from helpers.serve.spec import ServingSpec


def _rent(settings):
    provider = rent.connect(settings)
    machine = guard.rent(provider, ServingSpec(), "kill", settings, progress=print)
    assert eventually(lambda: "rehearsal: ready" in provider.logs(machine.id))
    return provider, machine


def _group(settings):
    return [*ours(settings.rehearsal_home), *on_machines(settings.rehearsal_home)]


def test_stop_leaves_no_process(own_rehearsal):
    """``rehearse --stop`` ends server, machines and model servers."""
    _rent(own_rehearsal)
    assert len(_group(own_rehearsal)) >= 3
    assert rehearsal.stop(own_rehearsal)
    assert eventually(lambda: not _group(own_rehearsal))
    assert not list((own_rehearsal.rehearsal_home / "instances").iterdir())


def test_a_home_that_cannot_be_written_to_is_a_sentence(own_rehearsal):
    """Read-only or full; the setting that names another place is told."""
    own_rehearsal.rehearsal_home.write_text("a file")
    with pytest.raises(CourseError, match=r"cannot write to .*\n.*REHEARSAL_HOME"):
        rehearsal.ensure(own_rehearsal)


def test_it_is_reached_without_the_environments_proxy(own_rehearsal, monkeypatch):
    """By our own calls and by the marketplace's client, which asks the environment."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    config = settings.read()
    assert config.rehearsal_home == own_rehearsal.rehearsal_home
    assert rent.connect(config).offers(OfferFilter())


def test_killed_server_takes_its_machines_along_and_resumes(own_rehearsal):
    """After kill -9 of the marketplace nothing computes; the next start finds the rental again."""
    _, machine = _rent(own_rehearsal)
    os.kill(rehearsal.running(own_rehearsal).pid, signal.SIGKILL)
    assert eventually(lambda: not _group(own_rehearsal))
    again = rent.connect(own_rehearsal)
    assert [i.id for i in again.instances()] == [machine.id]
    assert rent.wait_running(again, machine.id).status == "running"


def test_killed_machine_is_reported_as_failed(own_rehearsal):
    """A host that dies takes its model server along and shows as failed."""
    provider, machine = _rent(own_rehearsal)
    victim = next(p for p in _group(own_rehearsal) if "helpers.rehearsal.instance" in p.cmdline())
    victim.kill()
    assert eventually(lambda: provider.instance(machine.id).status == "failed")
    assert eventually(lambda: len(_group(own_rehearsal)) == 1), "only the marketplace is left"


def test_idle_rehearsal_stops_by_itself(own_rehearsal):
    """Left alone it ends its rentals and itself."""
    impatient = own_rehearsal.model_copy(update={"rehearsal_idle_s": 1.5})
    _rent(impatient)
    # Asking whether it runs would be use: look at its processes only.
    assert eventually(lambda: not _group(impatient))
    assert not rehearsal.holds_rentals(impatient)


def test_it_outlives_the_process_that_started_it(own_rehearsal):
    """Several notebooks share it: a killed kernel does not end it, its tunnel ends with it."""
    code = (
        "import os, signal\n"
        "from helpers import rent, settings\nfrom helpers.rent import guard, ssh\n"
        "from helpers.serve.spec import ServingSpec\n"
        "s = settings.read(); p = rent.connect(s)\n"
        "i = guard.rent(p, ServingSpec(), 'kernel', s, progress=print)\n"
        "t = ssh.tunnel(i, s)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    provider = rent.connect(own_rehearsal)
    assert [i.status for i in provider.instances()] == ["running"]
    assert eventually(
        lambda: not any("rent/tunnel.py" in " ".join(p.cmdline()) for p in _group(own_rehearsal))
    )


def test_only_the_token_opens_it(provider, settings):
    """Another local user cannot use the API, nor read the token."""
    server = rehearsal.running(settings)
    assert requests.get(f"{server.url}/api/v0/users/current/", timeout=5).status_code == 401
    wrong = {"Authorization": f"Bearer {'0' * 64}"}
    answer = requests.put(f"{server.url}/api/v0/asks/1105/", headers=wrong, json={}, timeout=5)
    assert answer.status_code == 401
    assert answer.json()["error"] == "auth_error"
    assert (settings.rehearsal_home / "server.json").stat().st_mode & 0o077 == 0
    assert settings.rehearsal_home.stat().st_mode & 0o077 == 0
    assert server.token not in repr(server)


def test_a_machines_own_key_ends_that_machine_only(own_rehearsal):
    """What a machine carries opens neither the account nor another machine."""
    provider = rent.connect(own_rehearsal)
    one = guard.rent(provider, Idle(), "one", own_rehearsal, progress=print)
    two = guard.rent(provider, Idle(), "two", own_rehearsal, progress=print)
    key = ssh.run(one, own_rehearsal, "echo $CONTAINER_API_KEY").strip()
    server, head = rehearsal.running(own_rehearsal), {"Authorization": f"Bearer {key}"}
    for path in ("users/current", f"instances/{two.id}", "ssh"):
        for method in ("DELETE", "GET"):
            url = f"{server.url}/api/v0/{path}/"
            assert requests.request(method, url, headers=head, timeout=5).status_code == 401
    answer = requests.delete(f"{server.url}/api/v0/instances/{one.id}/", headers=head, timeout=5)
    assert answer.ok
    assert [machine.id for machine in provider.instances()] == [two.id]
