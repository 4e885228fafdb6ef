"""Commands over SSH: on the rehearsal's server and on OpenSSH's, and only on the right machine."""

import dataclasses
import re
import subprocess
import time

import asyncssh
import paramiko
import pytest
from pydantic import SecretStr
from support.sshd import openssh_server

from helpers.errors import CourseError
from helpers.rent import guard, ssh
from helpers.rent.keys import alias
from helpers.serve import ServingSpec


@pytest.fixture
def machine(settings, tmp_path):
    """A machine with OpenSSH's own server."""
    with openssh_server(settings, tmp_path) as instance:
        yield instance


def test_login_command_and_known_host(machine, settings):
    """Wait until it lets us in, run a command, and find its key pinned under our name for it."""
    ssh.wait_login(machine, settings, progress=print)
    assert ssh.run(machine, settings, "echo $((6 * 7))") == "42\n"
    assert f"openssh-{machine.id}" in ssh.known_hosts(settings).read_text()


def test_unknown_key_is_told_as_permission_denied(machine, settings, tmp_path):
    """A key the server does not know gives the sentence everyone searches for."""
    ssh.wait_login(machine, settings, progress=print)
    other = settings.model_copy(update={"ssh_key": tmp_path / "other"})
    ssh.ensure_key(other)
    with pytest.raises(CourseError, match="Permission denied"):
        ssh.run(machine, other, "true")


def test_rsa_key_of_the_readers_own_works(provider, settings, tmp_path):
    """The mission's `ssh-keygen -t rsa -b 4096` pair opens a machine as well."""
    key = tmp_path / "id_rsa"
    words = ["ssh-keygen", "-q", "-t", "rsa", "-b", "4096", "-N", "", "-f", str(key)]
    subprocess.run(words, check=True)
    mine = settings.model_copy(update={"ssh_key": key})
    with guard.rented(provider, ServingSpec(), "rsa", mine, progress=print) as machine:
        assert ssh.run(machine, mine, "echo in") == "in\n"
        with ssh.tunnel(machine, mine) as tunnel:
            assert tunnel.up


def test_passphrase_from_the_settings_opens_the_key(provider, settings, tmp_path):
    """A protected key works for commands and for the tunnel; without its phrase a sentence."""
    update = {"ssh_key": tmp_path / "k" / "id", "ssh_passphrase": SecretStr("open sesame")}
    mine = settings.model_copy(update=update)
    with guard.rented(provider, ServingSpec(), "phrase", mine, progress=print) as machine:
        assert ssh.run(machine, mine, "echo in") == "in\n"
        with ssh.tunnel(machine, mine) as tunnel:
            assert tunnel.up
            assert "open sesame" not in " ".join(tunnel.process.args)
        with pytest.raises(CourseError, match="protected by a passphrase"):
            ssh.run(machine, mine.model_copy(update={"ssh_passphrase": None}), "true")


def _copied(settings, folder):
    """The same key pair in a folder of the test's own, with its own known hosts."""
    for suffix in ("", ".pub"):
        source = settings.ssh_key.with_name(settings.ssh_key.name + suffix)
        (folder / f"id{suffix}").write_bytes(source.read_bytes())
        (folder / f"id{suffix}").chmod(0o600)
    return settings.model_copy(update={"ssh_key": folder / "id"})


def test_changed_host_key_is_refused(instance, settings, tmp_path):
    """Another machine behind the same name gets neither a login nor a tunnel."""
    mine = _copied(settings, tmp_path)
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    ssh.known_hosts(mine).write_text(f"{alias(instance)} {other}")
    with pytest.raises(CourseError, match=r"host key .* has changed"):
        ssh.run(instance, mine, "true")
    with pytest.raises(CourseError, match=r"host key .* has changed"):
        ssh.tunnel(instance, mine)


def test_a_cut_line_in_known_hosts_ends_no_login(instance, settings, tmp_path):
    """A full disk cut an older machine's line: this one is still known, and still checked."""
    mine = _copied(settings, tmp_path)
    ssh.run(instance, mine, "true")
    known = ssh.known_hosts(mine)
    kept = known.read_text()
    cut = "vast-7-1 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFEj8vr\n"
    known.write_bytes(b"\xff\xfe\n" + cut.encode() + kept.encode() + cut[:20].encode())
    assert ssh.run(instance, mine, "echo in") == "in\n"
    assert known.read_text() == kept


def test_what_a_machine_says_at_login_is_no_answer(instance, settings, monkeypatch):
    """An image whose .bashrc greets everybody: its words are not the command's."""
    run = paramiko.SSHClient.exec_command
    greeting = "echo Welcome to this image; echo 5;"
    monkeypatch.setattr(
        paramiko.SSHClient, "exec_command",
        lambda self, command, **more: run(self, f"{greeting} {command}", **more),
    )  # fmt: skip
    assert ssh.run(instance, settings, "echo in; echo twice") == "in\ntwice\n"
    until = guard.extend(instance, settings, 4)
    assert 3.9 < (until.timestamp() - time.time()) / 3600 < 4.1


def test_a_key_that_only_the_agent_can_open(settings, tmp_path, monkeypatch):
    """`ssh-add` is what the sentence asks for: it is enough for commands and for the tunnel."""
    agent = subprocess.run(["ssh-agent", "-s"], capture_output=True, text=True, check=True)
    for name, value in re.findall(r"(SSH_\w+)=([^;]+);", agent.stdout):
        monkeypatch.setenv(name, value)
    mine = settings.model_copy(update={"ssh_key": tmp_path / "id"})
    ssh.ensure_key(mine)
    try:
        subprocess.run(["ssh-add", mine.ssh_key], capture_output=True, check=True)
        words = ["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", mine.ssh_key]
        subprocess.run(words, check=True)
        ssh.ensure_key(mine)
        with openssh_server(mine, tmp_path) as machine:
            ssh.wait_login(machine, mine, progress=print)
            with ssh.tunnel(machine, mine) as tunnel:
                assert tunnel.up
    finally:
        subprocess.run(["ssh-agent", "-k"], capture_output=True, check=True)


def test_failing_command_reports_its_error(instance, settings):
    """The remote error text reaches the reader."""
    with pytest.raises(CourseError, match=r"status 3: nope"):
        ssh.run(instance, settings, "echo nope >&2; exit 3")


def test_wrong_port_is_a_sentence(instance, settings):
    """Nobody listens there: a sentence with the next step."""
    nowhere = dataclasses.replace(instance, ssh_port=1)
    with pytest.raises(CourseError, match="failed"):
        ssh.run(nowhere, settings, "true")
