"""The rehearsal: a real SSH server, the stock tools, honest money, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import requests
from support.waiting import eventually, free_port, ours

from helpers import rehearsal
from helpers import rent as providers
from helpers.rent import guard, ssh
from helpers.rent.market import OfferFilter
from helpers.serve.spec import ServingSpec

VASTAI = str(Path(sys.executable).parent / "vastai")


# -- SSH -----------------------------------------------------------------------------------


def test_stock_ssh_logs_in_with_the_generated_key(stock_ssh, instance, settings):
    """The command we show works as it stands."""
    line = ssh.command(instance, settings)
    done = subprocess.run([*line.split(), "echo $USER; exit 7"], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("root\n", 7)


def test_nothing_that_a_command_writes_is_lost(instance, settings):
    """Output and errors arrive whole, however fast the command ends."""
    with ssh.connect(instance, settings) as client:
        for _ in range(30):
            _, out, err = client.exec_command("seq 2000; echo last words >&2; exit 3")
            assert out.read().split()[-1] == b"2000"
            assert err.read() == b"last words\n"
            assert out.channel.recv_exit_status() == 3


def test_login_on_a_terminal_gives_a_shell(stock_ssh, instance, settings):
    """Who logs in by hand gets a prompt, and the shell's last status when leaving."""
    line = ssh.command(instance, settings)
    words = [*line.split()[:1], "-tt", *line.split()[1:]]
    done = subprocess.run(
        words, input="echo $((40 + 2)); exit 5\n", capture_output=True, text=True, timeout=20
    )
    assert "42" in done.stdout
    assert done.returncode == 5


def test_stock_ssh_forwards_the_model_port(stock_ssh, instance, settings, endpoint):
    """The stock tunnel command reaches the model server."""
    port = free_port()
    line = ssh.command(instance, settings, local_port=port)
    with subprocess.Popen(line.split(), stderr=subprocess.DEVNULL) as tunnel:
        try:
            listing = eventually(lambda: _get(f"http://127.0.0.1:{port}/v1/models"))
            assert listing.json()["data"][0]["id"] == endpoint.model
        finally:
            tunnel.terminate()


def _get(url):
    try:
        return requests.get(url, timeout=5)
    except requests.ConnectionError:
        return None


def test_wrong_key_and_password_are_refused(stock_ssh, instance, settings, tmp_path):
    """Only the registered key opens the machine, and there is no password login."""
    key = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    line = ssh.command(instance, settings).replace(str(settings.ssh_key), str(key), 1)
    words = [*line.split()[:-1], "-o", "BatchMode=yes", line.split()[-1], "true"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 255
    assert "Permission denied (publickey)" in done.stderr


def test_other_user_names_are_refused(stock_ssh, instance, settings):
    """The right key under another name is refused: the machine has one user."""
    line = ssh.command(instance, settings).replace("root@", "admin@")
    done = subprocess.run([*line.split(), "true"], capture_output=True, text=True)
    assert done.returncode == 255


def test_forwarding_reaches_the_machine_and_nothing_else(instance, settings, provider, endpoint):
    """The SSH server is no way to other ports of the reader's computer."""
    market = int(rehearsal.running(settings).url.rsplit(":", 1)[1])
    with ssh.connect(instance, settings) as client:
        for target in (("127.0.0.1", market), ("127.0.0.1", 22), ("example.com", 8000)):
            with pytest.raises(Exception, match="Connect failed"):
                client.get_transport().open_channel("direct-tcpip", target, ("127.0.0.1", 0))


def test_model_server_has_no_port_of_its_own(instance, settings, endpoint):
    """Nothing but the SSH server and the marketplace listens, and both on loopback only."""
    listening = [
        (process.name(), connection.laddr)
        for process in ours(settings.rehearsal_home)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {address.ip for _, address in listening} == {"127.0.0.1"}
    market = int(rehearsal.running(settings).url.rsplit(":", 1)[1])
    ports = {address.port for _, address in listening}
    assert {market, instance.ssh_port} <= ports
    local = endpoint.base_url.split(":")[2].split("/")[0]
    for port in ports - {int(local)}:
        answer = _status(f"http://127.0.0.1:{port}/v1/models")
        assert answer != 200, f"port {port} answers without a tunnel"


def _status(url):
    try:
        return requests.get(url, timeout=2).status_code
    except requests.RequestException:
        return None


def test_the_readers_environment_does_not_enter_the_machine(own_rehearsal, monkeypatch):
    """A key in the reader's environment is not in that of a rented machine."""
    monkeypatch.setenv("VAST_API_KEY_OF_THE_READER", "planted-secret")
    provider = providers.connect(own_rehearsal)
    with guard.rented(provider, ServingSpec(), "env", own_rehearsal, progress=print) as machine:
        assert "planted-secret" not in ssh.run(machine, own_rehearsal, "env")


def test_files_go_both_ways(instance, settings):
    """SFTP sees the same home directory as a command does."""
    with ssh.connect(instance, settings) as client:
        sftp = client.open_sftp()
        with sftp.open("note.txt", "w") as file:
            file.write("hello")
        assert ssh.run(instance, settings, "cat note.txt") == "hello"
        sftp.remove("note.txt")


# -- the stock vastai program --------------------------------------------------------------


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


# -- money ---------------------------------------------------------------------------------


def test_money_is_metered_by_the_second(own_rehearsal):
    """Running bills GPU and disk, stopped bills the disk, destroyed bills nothing."""
    provider = providers.connect(own_rehearsal)
    offer = provider.offers(OfferFilter(gpu=("H200",)))[0]
    machine = provider.launch(offer, ServingSpec(), "money")
    machine = providers.wait_running(provider, machine.id)
    before, began = provider.balance_usd(), time.monotonic()
    time.sleep(2)
    spent, hours = before - provider.balance_usd(), (time.monotonic() - began) / 3600
    assert spent == pytest.approx(offer.usd_per_hour * hours, rel=0.2)

    provider.stop(machine.id)
    stopped = provider.instance(machine.id)
    assert stopped.status == "stopped"
    assert 0 < stopped.usd_per_hour == stopped.stopped_usd_per_hour < offer.usd_per_hour / 10
    before = provider.balance_usd()
    time.sleep(2)
    assert 0 < before - provider.balance_usd() < spent / 5

    guard.destroy(provider, machine.id)
    before = provider.balance_usd()
    time.sleep(1)
    assert provider.balance_usd() == before


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


def test_template_launch_starts_the_templates_script(provider, settings):
    """One click: the market's vLLM template brings image, script and disk."""
    template = provider.sdk.search_templates("name=vLLM")[0]
    offer = provider.offers(OfferFilter())[0]
    machine = provider.launch(offer, ServingSpec(), "click", template_id=template["hash_id"])
    try:
        providers.wait_running(provider, machine.id)
        assert eventually(lambda: "rehearsal: ready on port 8000" in provider.logs(machine.id))
    finally:
        guard.destroy(provider, machine.id)


# -- processes -----------------------------------------------------------------------------


def _rent(settings):
    provider = providers.connect(settings)
    machine = guard.rent(provider, ServingSpec(), "kill", settings, progress=print)
    assert eventually(lambda: "rehearsal: ready" in provider.logs(machine.id))
    return provider, machine


def _group(settings):
    return ours(settings.rehearsal_home)


def test_stop_leaves_no_process(own_rehearsal):
    """``rehearse --stop`` ends server, machines and model servers."""
    _rent(own_rehearsal)
    assert len(_group(own_rehearsal)) >= 3
    assert rehearsal.stop(own_rehearsal)
    assert _group(own_rehearsal) == []
    assert not list((own_rehearsal.rehearsal_home / "instances").iterdir())


def test_killed_server_takes_its_machines_along_and_resumes(own_rehearsal):
    """After kill -9 of the marketplace nothing computes; the next start finds the rental again."""
    _, machine = _rent(own_rehearsal)
    os.kill(rehearsal.running(own_rehearsal).pid, signal.SIGKILL)
    assert eventually(lambda: not _group(own_rehearsal))
    again = providers.connect(own_rehearsal)
    assert [i.id for i in again.instances()] == [machine.id]
    assert providers.wait_running(again, machine.id).status == "running"


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
        "from helpers import settings, rent as providers\nfrom helpers.rent import guard, ssh\n"
        "from helpers.serve import spec as serving\n"
        "s = settings.load(); p = providers.connect(s)\n"
        "i = guard.rent(p, serving.ServingSpec(), 'kernel', s, progress=print)\n"
        "t = ssh.tunnel(i, s)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    provider = providers.connect(own_rehearsal)
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
