"""SSH to an instance with the reader's own key: commands, and the tunnel to the model's API."""

import json
import os
import pwd
import shlex
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.rent.keys import alias, connect, known_hosts, passphrase
from helpers.rent.keys import ensure_key as ensure_key
from helpers.rent.keys import read_public_key as read_public_key
from helpers.rent.market import Instance
from helpers.serve import ready
from helpers.serve.router import free_port
from helpers.serve.spec import ServingSpec
from helpers.settings import Settings

LOGIN_TIMEOUT_S, OPEN_TIMEOUT_S = 120.0, 60.0
MARK = "llm-course: here it begins"
PROCESS = Path(__file__).with_name("tunnel.py")


# -- commands ------------------------------------------------------------------------------


def run(instance: Instance, settings: Settings, command: str, timeout_s: float = 60) -> str:
    """Run one command on the instance.

    Args:
        instance: where.
        settings: whose key.
        command: a line for the remote shell.
        timeout_s: give up when it is silent for so many seconds.

    Returns:
        What it wrote to standard output.

    Raises:
        CourseError: when the login fails or the command ends with an error.
    """
    with connect(instance, settings) as client:
        try:
            _, out, err = client.exec_command(f"echo {MARK}; {command}", timeout=timeout_s)
            text, errors = out.read().decode(errors="replace"), err.read().decode(errors="replace")
            text = text.rpartition(f"{MARK}\n")[2]  # before it: what a .bashrc says at each login
            status = out.channel.recv_exit_status()
        except TimeoutError:
            raise CourseError(f"{command!r} said nothing for {timeout_s:.0f} s") from None
    if status:
        raise CourseError(f"{command!r} ended with status {status}: {errors.strip()[-500:]}")
    return text


def restart(instance: Instance, spec: ServingSpec, settings: Settings) -> None:
    """Stop the model server of an instance and start another one there, in its environment.

    It writes to the same log. ``Tunnel.endpoint`` waits until it answers.

    Args:
        instance: where.
        spec: what it is to serve from now on; its image, disk and ``env`` stay what was rented.
        settings: whose key.

    Raises:
        CourseError: the login fails, or the server was not started by a ``ServingSpec``.
    """
    run(instance, settings, spec.replaced(), timeout_s=120)


def wait_login(
    instance: Instance, settings: Settings, *, progress: Callable[[str], None] = print
) -> None:
    """Wait until the instance lets us in: "running" comes before its SSH server does.

    Args:
        instance: where.
        settings: whose key.
        progress: called with one line for each failure.

    Raises:
        CourseError: the last failure, when time is up.
    """
    deadline = time.monotonic() + LOGIN_TIMEOUT_S
    while True:
        try:
            run(instance, settings, "true")
            return
        except CourseError as error:
            if time.monotonic() > deadline or "host key" in error.what:
                raise
            progress(error.what)
            time.sleep(2)


def command(
    instance: Instance, settings: Settings, local_port: int | None = None, remote_port: int = 8000
) -> str:
    """The stock ``ssh`` command that logs in, or with ``local_port`` only forwards a port."""
    words = ["ssh", "-p", str(instance.ssh_port), "-i", str(settings.ssh_key)]
    words += ["-o", f"HostKeyAlias={alias(instance)}"]
    words += ["-o", f"UserKnownHostsFile={known_hosts(settings)}"]
    words += ["-o", "StrictHostKeyChecking=accept-new", "-o", "IdentitiesOnly=yes"]
    if local_port is not None:
        words += ["-N", "-L", f"{local_port}:127.0.0.1:{remote_port}"]
    words.append(f"{instance.ssh_user}@{instance.ssh_host}")
    home = pwd.getpwuid(os.getuid()).pw_dir  # where ssh looks for ~, whatever $HOME says
    return shlex.join(words).replace(f"{home}/", "~/")


# -- the tunnel ----------------------------------------------------------------------------

OPEN: "weakref.WeakSet[Tunnel]" = weakref.WeakSet()  # to be closed when their machine is destroyed


class Tunnel:
    """A forwarded port, kept up by a process of its own; close it, or leave its ``with``.

    Args:
        instance: where it leads to.
        local_port: its end on this machine.
        command: the stock ``ssh`` command that does the same.
        task: what the process reads from its standard input.

    Raises:
        CourseError: when it is not through after a minute, with the last reason.
    """

    def __init__(self, instance: Instance, local_port: int, command: str, task: str) -> None:
        self.instance, self.local_port, self.command = instance, local_port, command
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  closed with the tunnel
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(PROCESS)],
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=self._output,
            text=True,
            start_new_session=True,  # Ctrl-C in a notebook stops the cell, not the tunnel
        )
        print(task, file=self.process.stdin, flush=True)
        deadline = time.monotonic() + OPEN_TIMEOUT_S
        try:
            while not self.up:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    what = f"the tunnel is not up: {(self.events or ['no answer'])[-1]}"
                    raise CourseError(what, f"try the stock command to see why: {command}")
                time.sleep(0.05)
        except BaseException:
            self.close()
            raise
        OPEN.add(self)

    @property
    def base_url(self) -> str:
        """Root of the model's API at this end."""
        return f"http://127.0.0.1:{self.local_port}/v1"

    @property
    def events(self) -> list[str]:
        """What has happened so far, a line each: ``up``, or ``down:`` and why."""
        file = self._output.fileno()  # read by position: the process goes on writing at its own
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace").splitlines()

    @property
    def up(self) -> bool:
        """Is the tunnel through at this moment?"""
        return self.process.poll() is None and self.events[-1:] == ["up"]

    def endpoint(self, **waiting: Any) -> Endpoint:
        """Wait until the model at the other end answers, and describe it.

        Args:
            **waiting: ``api_key``, ``timeout_s``, ``poll_s``, ``progress`` and ``log`` of
                :func:`helpers.serve.endpoint`.

        Raises:
            CourseError: when the server gives up, refuses the key, or is not ready in time.
        """
        machine = self.instance
        about = {"hardware": machine.hardware, "source": machine.provider, **waiting}
        return ready.endpoint(self.base_url, **about)

    def close(self) -> None:
        """Take the tunnel down."""
        self.process.terminate()
        self.process.communicate()
        self._output.close()

    def __enter__(self) -> "Tunnel":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def tunnel(instance: Instance, settings: Settings, remote_port: int = 8000) -> Tunnel:
    """Forward a free local port to ``127.0.0.1:remote_port`` of the instance.

    Its own process carries the bytes, so that the load generator does not pay for encryption;
    it reconnects when the line drops and ends with the process that opened it.

    Raises:
        CourseError: when the tunnel is not up after a minute, with the last reason.
    """
    with connect(instance, settings):
        pass  # pins the host key at first contact, and tells a wrong key at once
    port = free_port()
    login = {
        "host": instance.ssh_host,
        "port": instance.ssh_port,
        "username": instance.ssh_user,
        "client_keys": [str(settings.ssh_key)],
        "passphrase": passphrase(settings),
        "ignore_encrypted": True,  # the agent may have the key that is locked here
        "known_hosts": str(known_hosts(settings)),
        "host_key_alias": alias(instance),
    }
    # Through the pipe, not the command line: other users can read a command line.
    task = json.dumps({"login": login, "local_port": port, "remote_port": remote_port})
    shown = command(instance, settings, port, remote_port)
    return Tunnel(instance, port, shown, task)
