"""Commands over SSH: on the rehearsal's server and on OpenSSH's, and only on the right machine."""

import dataclasses
import subprocess

import asyncssh
import pytest
from pydantic import SecretStr
from support.sshd import openssh_server

from helpers.errors import CourseError
from helpers.rent import guard, ssh
from helpers.rent.login import alias
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


def test_changed_host_key_is_refused(instance, settings, tmp_path):
    """Another machine behind the same name gets neither a login nor a tunnel."""
    mine = settings.model_copy(update={"ssh_key": tmp_path / "id"})
    for suffix in ("", ".pub"):
        source = settings.ssh_key.with_name(settings.ssh_key.name + suffix)
        target = tmp_path / f"id{suffix}"
        target.write_bytes(source.read_bytes())
        target.chmod(0o600)
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    ssh.known_hosts(mine).write_text(f"{alias(instance)} {other}")
    with pytest.raises(CourseError, match=r"host key .* has changed"):
        ssh.run(instance, mine, "true")
    with pytest.raises(CourseError, match=r"host key .* has changed"):
        ssh.tunnel(instance, mine)


def test_failing_command_reports_its_error(instance, settings):
    """The remote error text reaches the reader."""
    with pytest.raises(CourseError, match=r"status 3: nope"):
        ssh.run(instance, settings, "echo nope >&2; exit 3")


def test_wrong_port_is_a_sentence(instance, settings):
    """Nobody listens there: a sentence with the next step."""
    nowhere = dataclasses.replace(instance, ssh_port=1)
    with pytest.raises(CourseError, match="failed"):
        ssh.run(nowhere, settings, "true")
