"""A rented machine: a real SSH server, cores of its own, and nothing of the reader's inside."""

import os
import subprocess

import psutil
import pytest
import requests
from support.machines import Idle
from support.waiting import eventually, free_port, on_machines, ours

from helpers import rehearsal, rent
from helpers.rent import guard, ssh
from helpers.rent.market import OfferFilter


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


def test_login_by_hand_gives_a_shell(stock_ssh, instance, settings):
    """The shell's answers come, and its last status when leaving."""
    words = ssh.command(instance, settings).split()
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
    provider = rent.connect(own_rehearsal)
    with guard.rented(provider, Idle(), "env", own_rehearsal, progress=print) as machine:
        assert "planted-secret" not in ssh.run(machine, own_rehearsal, "env")


def test_files_go_both_ways(instance, settings):
    """SFTP sees the same home directory as a command does."""
    with ssh.connect(instance, settings) as client:
        sftp = client.open_sftp()
        with sftp.open("note.txt", "w") as file:
            file.write("hello")
        assert ssh.run(instance, settings, "cat note.txt") == "hello"
        sftp.remove("note.txt")


def test_a_machine_gets_the_cores_that_its_offer_names(own_rehearsal):
    """Two of one core each do not share it (with two cores or more); another gets all it names."""
    provider = rent.connect(own_rehearsal)
    provider.register_key(ssh.ensure_key(own_rehearsal))
    offers = provider.offers(OfferFilter(gpu=("RTX 4090",))) + provider.offers(OfferFilter())[:1]
    counts, cores = [], []
    for offer in offers:
        machine = provider.launch(offer, Idle(), "cores")
        machine = rent.wait_running(provider, machine.id, progress=print)
        ssh.wait_login(machine, own_rehearsal, progress=print)
        told = ssh.run(machine, own_rehearsal, "nproc; grep Cpus_allowed_list /proc/self/status")
        count, _, where = told.split()
        assert machine.hardware.split()[0] == count
        counts.append(int(count))
        cores.append(where)
    here = len(os.sched_getaffinity(0))
    assert counts == [1, 1, min(here, 8)]
    assert cores[0] != cores[1] or here == 1


def test_the_engine_does_not_spin(instance, settings, endpoint):
    """Threads that wait for each other must leave the cores to another program."""
    engines = [one for one in on_machines(settings.rehearsal_home) if one.num_threads() > 8]
    assert engines and all(one.environ()["GOMP_SPINCOUNT"] == "300" for one in engines)
