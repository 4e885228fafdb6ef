"""SSH: the key pair is never lost or overwritten, hosts are who they were, tunnels come back."""

import asyncio
import contextlib
import dataclasses
import subprocess
import threading
import time

import pytest
import requests

from helpers.errors import CourseError
from helpers.rent import ssh


@pytest.fixture
def fresh(settings, tmp_path):
    """Settings with a key path where nothing is yet."""
    return settings.model_copy(update={"ssh_key": tmp_path / "dot-ssh" / "id_course"})


def test_new_key_is_private_and_openssh_reads_it(fresh):
    """0600 in 0700, and ssh-keygen derives the same public key from it."""
    public = ssh.ensure_key(fresh)
    assert fresh.ssh_key.stat().st_mode & 0o777 == 0o600
    assert fresh.ssh_key.parent.stat().st_mode & 0o777 == 0o700
    derived = subprocess.run(
        ["ssh-keygen", "-y", "-f", fresh.ssh_key], capture_output=True, text=True, check=True
    )
    assert derived.stdout.split()[:2] == public.split()[:2]


def test_existing_key_is_kept(fresh):
    """Asking again returns the same pair."""
    first = ssh.ensure_key(fresh)
    content = fresh.ssh_key.read_bytes()
    assert ssh.ensure_key(fresh) == first
    assert fresh.ssh_key.read_bytes() == content


def test_lone_private_key_is_not_replaced(fresh):
    """When only the .pub is missing the sentence says how to derive it; nothing is written."""
    ssh.ensure_key(fresh)
    content = fresh.ssh_key.read_bytes()
    fresh.ssh_key.with_name("id_course.pub").unlink()
    with pytest.raises(CourseError, match="ssh-keygen -y"):
        ssh.ensure_key(fresh)
    assert fresh.ssh_key.read_bytes() == content


def test_private_key_given_for_a_public_one_is_caught(fresh):
    """The classic mistake: the private key must not be sent anywhere."""
    ssh.ensure_key(fresh)
    with pytest.raises(CourseError, match="holds a private key") as caught:
        ssh.read_public_key(fresh.ssh_key)
    assert fresh.ssh_key.read_text().splitlines()[1] not in str(caught.value)


def test_nonsense_is_no_public_key(tmp_path):
    """A file that is no key is named as such."""
    (tmp_path / "x.pub").write_text("hello")
    with pytest.raises(CourseError, match="not an OpenSSH public key"):
        ssh.read_public_key(tmp_path / "x.pub")


def test_rsa_key_of_the_readers_own_works(provider, settings, tmp_path):
    """The mission's `ssh-keygen -t rsa -b 4096` pair opens a machine as well."""
    from helpers.rent import guard
    from helpers.serve.spec import ServingSpec

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
    from pydantic import SecretStr

    from helpers.rent import guard
    from helpers.serve.spec import ServingSpec

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
    import asyncssh

    mine = settings.model_copy(update={"ssh_key": tmp_path / "id"})
    for suffix in ("", ".pub"):
        source = settings.ssh_key.with_name(settings.ssh_key.name + suffix)
        target = tmp_path / f"id{suffix}"
        target.write_bytes(source.read_bytes())
        target.chmod(0o600)
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    ssh.known_hosts(mine).write_text(f"{ssh._alias(instance)} {other}")
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


class Cable:
    """A TCP relay to the machine's SSH port that can be cut and mended."""

    def __init__(self, port: int) -> None:
        self.target, self.tasks, self.loop = port, set(), asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.port = 0
        self.mend()

    def _do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    async def _relay(self, reader, writer):
        self.tasks.add(writer)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        self.tasks.add(far_writer)

        async def copy(source, sink):
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    sink.write(data)
            sink.close()

        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    async def _listen(self):
        self.server = await asyncio.start_server(self._relay, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def _cut(self):
        self.server.close()
        for writer in self.tasks:
            writer.transport.abort()
        self.tasks.clear()

    def mend(self):
        self._do(self._listen())

    def cut(self):
        self._do(self._cut())

    def remove(self):
        self.cut()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


def test_dropped_tunnel_comes_back_on_the_same_port(instance, settings, endpoint):
    """The line drops and returns: the endpoint keeps its address."""
    cable = Cable(instance.ssh_port)
    try:
        behind = dataclasses.replace(instance, ssh_port=cable.port)
        with ssh.tunnel(behind, settings) as tunnel:
            url = f"{tunnel.base_url}/models"
            assert requests.get(url, timeout=5).ok
            cable.cut()
            deadline = time.monotonic() + 10
            while tunnel.up and time.monotonic() < deadline:
                time.sleep(0.05)
            with pytest.raises(requests.ConnectionError):
                requests.get(url, timeout=5)
            cable.mend()
            while not tunnel.up and time.monotonic() < deadline + 20:
                time.sleep(0.05)
            assert requests.get(url, timeout=5).ok
    finally:
        cable.remove()


def test_closed_tunnel_leaves_no_process(instance, settings):
    """Leaving the block ends the tunnel's process."""
    with ssh.tunnel(instance, settings) as tunnel:
        assert tunnel.process.poll() is None
    assert tunnel.process.poll() is not None


def test_stock_tunnel_reaches_the_model_and_ends(instance, settings, endpoint, stock_ssh):
    """OpenSSH's own forwarding, to compare with: it works, and leaves no process."""
    with ssh.stock_tunnel(instance, settings) as tunnel:
        assert requests.get(f"{tunnel.base_url}/models", timeout=5).ok
    assert tunnel.process.poll() is not None
    nowhere = dataclasses.replace(instance, ssh_port=1)
    with pytest.raises(CourseError, match="does not come up"), ssh.stock_tunnel(nowhere, settings):
        pass
