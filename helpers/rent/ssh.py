"""SSH with the reader's own key: the pair, commands, files, and the tunnel to the model's API."""

import contextlib
import json
import os
import pwd
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import paramiko
from filelock import FileLock

from helpers.errors import CourseError
from helpers.rent.keys import ensure_key, read_public_key
from helpers.rent.market import Instance
from helpers.settings import Settings

__all__ = [
    "Tunnel", "command", "connect", "ensure_key", "known_hosts", "read_public_key", "run",
    "stock_tunnel", "tunnel", "wait_login",
]  # fmt: skip

CONNECT_TIMEOUT_S = 15.0


# -- host keys -----------------------------------------------------------------------------


def _alias(instance: Instance) -> str:
    """The name a machine's host key is kept under: addresses and ports are reused, ids are not."""
    created = int(instance.created)
    return f"{instance.provider}-{instance.id}-{created}"


def known_hosts(settings: Settings) -> Path:
    """The course's own ``known_hosts``, so that the reader's stays clean."""
    return settings.ssh_key.with_name(settings.ssh_key.name + "_known_hosts")


class _PinHostKey(paramiko.MissingHostKeyPolicy):
    """Keep a machine's key at first contact; refuse any other one afterwards."""

    def __init__(self, file: Path, alias: str) -> None:
        self.file, self.alias = file, alias

    def missing_host_key(self, client, hostname, key) -> None:
        with FileLock(f"{self.file}.lock"):
            known = paramiko.HostKeys(str(self.file) if self.file.exists() else None)
            entries = known.lookup(self.alias)
            if entries is None:
                known.add(self.alias, key.get_name(), key)
                known.save(str(self.file))
            elif entries.get(key.get_name()) != key:
                raise CourseError(
                    f"the host key of {self.alias} has changed: this may be another machine",
                    "do not send it anything; destroy the instance and rent another one "
                    f"(a host that was reinstalled: delete its line in {self.file})",
                )


# -- commands and files --------------------------------------------------------------------


@contextlib.contextmanager
def connect(instance: Instance, settings: Settings) -> Iterator[paramiko.SSHClient]:
    """A ``paramiko`` client logged in to an instance, closed on leaving.

    Raises:
        CourseError: when the login fails, with the usual reason and its remedy.
    """
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(_PinHostKey(known_hosts(settings), _alias(instance)))
    phrase = settings.ssh_passphrase and settings.ssh_passphrase.get_secret_value()
    try:
        client.connect(
            instance.ssh_host,
            instance.ssh_port,
            instance.ssh_user,
            key_filename=str(settings.ssh_key),
            passphrase=phrase,
            look_for_keys=False,
            timeout=CONNECT_TIMEOUT_S,
            banner_timeout=CONNECT_TIMEOUT_S,
            auth_timeout=CONNECT_TIMEOUT_S,
        )
    except paramiko.PasswordRequiredException:
        raise _needs_passphrase(settings) from None
    except paramiko.AuthenticationException:
        raise CourseError(
            f"Permission denied (publickey): {instance.id} does not know {settings.ssh_key}.pub",
            "register the key before renting (provider.register_key); a machine that runs "
            "already keeps the keys it was made with",
        ) from None
    except (OSError, paramiko.SSHException) as error:
        raise CourseError(
            f"SSH to {instance.ssh_host}:{instance.ssh_port} failed: {error}",
            "a fresh machine may refuse for half a minute; ask the provider for its present port",
        ) from None
    try:
        yield client
    finally:
        client.close()


def run(instance: Instance, settings: Settings, command: str, timeout_s: float = 60) -> str:
    """Run one command on the instance.

    Args:
        instance: where.
        settings: whose key.
        command: a line for the remote shell.
        timeout_s: give up when it is silent for so long.

    Returns:
        What it wrote to standard output.

    Raises:
        CourseError: when the login fails or the command ends with an error.
    """
    with connect(instance, settings) as client:
        try:
            _, out, err = client.exec_command(command, timeout=timeout_s)
            text, errors = out.read().decode(errors="replace"), err.read().decode(errors="replace")
            status = out.channel.recv_exit_status()
        except TimeoutError:
            raise CourseError(f"{command!r} said nothing for {timeout_s:.0f} s") from None
    if status:
        raise CourseError(f"{command!r} ended with status {status}: {errors.strip()[-500:]}")
    return text


def wait_login(
    instance: Instance,
    settings: Settings,
    *,
    timeout_s: float = 120,
    progress: Callable[[str], None] = print,
) -> None:
    """Wait until the instance lets us in: "running" comes before its SSH server does.

    Raises:
        CourseError: the last failure, when time is up.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            run(instance, settings, "true")
            return
        except CourseError as error:
            if time.monotonic() > deadline or "host key" in error.what:
                raise
            progress(error.what)
            time.sleep(2)


# -- the tunnel ----------------------------------------------------------------------------


def command(
    instance: Instance, settings: Settings, local_port: int | None = None, remote_port: int = 8000
) -> str:
    """The stock ``ssh`` command that logs in, or with ``local_port`` only forwards a port."""
    words = ["ssh", "-p", str(instance.ssh_port), "-i", _shown(settings.ssh_key)]
    words += ["-o", f"HostKeyAlias={_alias(instance)}"]
    words += ["-o", f"UserKnownHostsFile={_shown(known_hosts(settings))}"]
    words += ["-o", "StrictHostKeyChecking=accept-new", "-o", "IdentitiesOnly=yes"]
    if local_port is not None:
        words += ["-N", "-L", f"{local_port}:127.0.0.1:{remote_port}"]
    words.append(f"{instance.ssh_user}@{instance.ssh_host}")
    # Not quoted for a tilde alone: ssh resolves it itself, quoted or not.
    plain = re.compile(r"[\w@%+=:,./~-]+")
    return " ".join(word if plain.fullmatch(word) else shlex.quote(word) for word in words)


def _shown(path: Path) -> str:
    """A path under the home directory as ``~/...``, which ``ssh`` itself understands."""
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)  # where ssh looks, whatever $HOME says
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


@contextlib.contextmanager
def stock_tunnel(
    instance: Instance, settings: Settings, remote_port: int = 8000, timeout_s: float = 15
) -> Iterator["Tunnel"]:
    """The same port through OpenSSH's own ``ssh -N -L``, to compare with; it does not reconnect.

    Raises:
        CourseError: when there is no ``ssh`` program, or it does not come up.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shown = command(instance, settings, port, remote_port)
    if shutil.which("ssh") is None:
        raise CourseError("there is no ssh program here", "install OpenSSH's client")
    options = ["-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes"]
    words = shlex.split(shown)
    process = subprocess.Popen(
        [*words[:-1], *options, words[-1]], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + timeout_s
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                said = process.stderr.read().decode(errors="replace").strip()
                raise CourseError(f"{shown}\ndoes not come up: {said or 'no answer'}")
            time.sleep(0.05)
        yield Tunnel(port, shown, process, [{"event": "up"}])
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Tunnel:
    """A forwarded port, kept up by a process of its own; close it, or leave its ``with``."""

    local_port: int
    command: str
    process: subprocess.Popen
    events: list[dict]

    @property
    def base_url(self) -> str:
        """Root of the model's API at this end."""
        return f"http://127.0.0.1:{self.local_port}/v1"

    @property
    def up(self) -> bool:
        """Is the tunnel through at this moment?"""
        return self.process.poll() is None and self.events[-1]["event"] == "up"

    def close(self) -> None:
        """Take the tunnel down."""
        self.process.stdin.close()  # its process ends when this closes, as it does if we die
        self.process.wait(timeout=10)

    def __enter__(self) -> "Tunnel":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def tunnel(
    instance: Instance, settings: Settings, remote_port: int = 8000, timeout_s: float = 60
) -> Tunnel:
    """Forward a free local port to ``127.0.0.1:remote_port`` of the instance.

    Its own process carries the bytes, so that the load generator does not pay for encryption;
    it reconnects when the line drops and ends with the process that opened it.

    Raises:
        CourseError: when the tunnel is not up in time, with the last reason.
    """
    with connect(instance, settings):
        pass  # pins the host key at first contact, and tells a wrong key at once
    phrase = settings.ssh_passphrase and settings.ssh_passphrase.get_secret_value()
    task = {
        "host": instance.ssh_host,
        "port": instance.ssh_port,
        "user": instance.ssh_user,
        "key": str(settings.ssh_key),
        "passphrase": phrase,
        "known_hosts": str(known_hosts(settings)),
        "alias": _alias(instance),
        "remote_port": remote_port,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "helpers.rent.tunnel"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C in a notebook stops the cell, not the tunnel
    )
    # Through the pipe, not the command line: other users can read a command line.
    process.stdin.write(json.dumps(task) + "\n")
    process.stdin.flush()
    events: list[dict] = []
    came = threading.Event()

    def listen() -> None:
        for line in process.stdout:
            events.append(json.loads(line))
            came.set()

    threading.Thread(target=listen, daemon=True).start()
    deadline = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < deadline:
        came.wait(0.2)
        if events and events[-1]["event"] == "up":
            port = events[-1]["local_port"]
            shown = command(instance, settings, port, remote_port)
            return Tunnel(port, shown, process, events)
    process.stdin.close()
    process.kill()
    process.wait()
    reason = events[-1].get("reason", "") if events else "no answer"
    raise CourseError(
        f"the tunnel to {instance.ssh_host}:{instance.ssh_port} is not up: {reason}",
        "try the stock command to see why: " + command(instance, settings),
    )


def _needs_passphrase(settings: Settings) -> CourseError:
    return CourseError(
        f"{settings.ssh_key} is protected by a passphrase",
        "load it into the agent (ssh-add) or set SSH_PASSPHRASE in .env",
    )
