"""OpenSSH's own server, which is what a rented machine runs."""

import contextlib
import getpass
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.rent.keys import ensure_key
from helpers.rent.market import Instance
from helpers.settings import Settings
from support.waiting import free_port


@contextlib.contextmanager
def openssh_server(settings: Settings, folder: Path) -> Iterator[Instance]:
    """An instance record that points at an ``sshd`` which knows the course's key."""
    program = shutil.which("sshd", path=f"{os.defpath}:/usr/sbin:/usr/local/sbin")
    if not program:
        pytest.skip("OpenSSH's sshd is not installed (openssh-server)")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # its privilege separation wants it
    host_key, authorized = folder / "host_key", folder / "authorized_keys"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", host_key], check=True)
    authorized.write_text(ensure_key(settings))
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
