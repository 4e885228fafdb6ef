"""The same client code against OpenSSH's own server, which is what a rented machine runs."""

import functools
import getpass
import http.server
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
import requests
from support.waiting import eventually, free_port

from helpers.errors import CourseError
from helpers.rent import ssh
from helpers.rent.market import Instance


@pytest.fixture
def machine(settings, tmp_path):
    """An instance record that points at an ``sshd`` which knows the course's key."""
    program = shutil.which("sshd", path=f"{os.defpath}:/usr/sbin:/usr/local/sbin")
    if not program:
        pytest.skip("OpenSSH's sshd is not installed (openssh-server)")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # its privilege separation wants it
    host_key, authorized = tmp_path / "host_key", tmp_path / "authorized_keys"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", host_key], check=True)
    authorized.write_text(ssh.ensure_key(settings))
    port = free_port()
    words = [program, "-D", "-e", "-f", "/dev/null", "-h", host_key, "-p", str(port)]
    for option in (
        "ListenAddress=127.0.0.1",
        f"AuthorizedKeysFile={authorized}",
        "StrictModes=no",
        "UsePAM=no",
        "PasswordAuthentication=no",
        "PidFile=none",
    ):
        words += ["-o", option]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as server:
        yield Instance(
            id=str(port),
            provider="openssh",
            label="",
            status="running",
            detail="",
            gpu="",
            gpu_count=0,
            usd_per_hour=0,
            stopped_usd_per_hour=0,
            created=time.time(),
            ssh_host="127.0.0.1",
            ssh_port=port,
            ssh_user=getpass.getuser(),
        )
        server.terminate()


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


def test_tunnel_carries_http(machine, settings, tmp_path):
    """The tunnel process forwards to a port of the far side's loopback."""
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "hello").write_text("through")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        ssh.wait_login(machine, settings, progress=print)
        with ssh.tunnel(machine, settings, remote_port=web.server_port) as tunnel:
            reply = eventually(lambda: requests.get(f"{tunnel.base_url}/hello", timeout=5))
            assert reply.text == "through"
        web.shutdown()
