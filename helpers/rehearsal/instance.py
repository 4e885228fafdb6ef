"""A rented machine of the rehearsal: a real SSH server over a private folder of this machine.

Run by the marketplace as ``python -m helpers.rehearsal.instance FOLDER``. It tells its state in
JSON lines on standard output and ends, with everything it started, when standard input closes.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path
from typing import Any

import asyncssh

LAST_WORDS_S = 2.0
PROGRAMS = Path(__file__).parents[2] / "assets" / "rehearsal_bin"


class Machine:
    """The machine's folder, environment and processes.

    Args:
        folder: holds ``machine.json`` (written by the marketplace), ``authorized_keys``, the host
            key, the log and ``root/``, the home directory of the machine's only user.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "root"
        self.config = json.loads((folder / "machine.json").read_text())
        self.logins: set[Login] = set()
        self.opens = time.monotonic() + self.config["ssh_after_s"]

    def boot(self) -> None:
        """Lay out the home directory, its commands and the host key; run the script."""
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.config["cores"])  # all that it starts stays there
        shutil.copytree(PROGRAMS, self.home / "bin", dirs_exist_ok=True)
        host_key = self.folder / "host_key"
        if not host_key.exists():
            asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(host_key))
        script = self.home / "onstart.sh"
        script.write_text(self.config["onstart"])
        with (self.folder / "container.log").open("ab") as log:
            subprocess.Popen(
                ["/bin/sh", script.name], stdin=DEVNULL, stdout=log, stderr=log, **self.place()
            )

    def place(self) -> dict[str, Any]:
        """Where its processes run; nothing of the reader's own (their keys!) enters."""
        programs = [str(self.home / "bin"), str(Path(sys.executable).parent), os.defpath]
        env = {
            "HOME": str(self.home),
            "USER": "root",
            "LANG": "C.UTF-8",
            "PATH": os.pathsep.join(programs),
            "REHEARSAL_PYTHON": sys.executable,
            **self.config["env"],
        }
        return {"cwd": self.home, "env": env}


class Login(asyncssh.SSHServer):
    """Public-key login as root, commands, and forwarding to the machine's own ports."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Count the connection: a used machine is not idle."""
        self.conn = conn
        self.machine.logins.add(self)
        print(json.dumps({"connections": len(self.machine.logins)}), flush=True)
        if time.monotonic() < self.machine.opens:
            conn.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Uncount it."""
        self.machine.logins.discard(self)
        print(json.dumps({"connections": len(self.machine.logins)}), flush=True)

    def begin_auth(self, username: str) -> bool:
        """Only root may prove to be somebody."""
        if username == "root":
            with contextlib.suppress(ValueError):
                self.conn.set_authorized_keys(str(self.machine.folder / "authorized_keys"))
        return True  # a login is always asked to prove itself

    def connection_requested(self, dest_host: str, dest_port: int, *origin: Any) -> Any:
        """Forward ``localhost:PORT`` of the machine, and nothing else of this computer."""
        socket = Path(self.machine.config["env"]["LOAD_UNIX_SOCKETS"], f"{dest_port}.sock")
        if dest_host not in ("localhost", "127.0.0.1", "::1") or not socket.exists():
            what = f"nothing listens on {dest_host}:{dest_port}"
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, what)
        return self.conn.forward_unix_connection(str(socket))


class Files(asyncssh.SFTPServer):
    """What ``scp`` and ``sftp`` see: the home directory, also under a container's usual names."""

    def map_path(self, path: bytes) -> bytes:
        """Where a path of the client's leads to."""
        return super().map_path(re.sub(b"^/(root|workspace)(?=/|$)", b"/", path))

    def exit(self) -> None:
        """All went well: without a status ``scp`` reports a failure."""
        self.channel.exit(0)


async def _serve_session(machine: Machine, process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Run one command, or a login shell, and carry its bytes both ways."""
    shell = ["/bin/sh", "-c", process.command] if process.command else ["/bin/sh", "-i"]
    child = await asyncio.create_subprocess_exec(
        *shell, stdin=PIPE, stdout=PIPE, stderr=PIPE, **machine.place()
    )
    # The end of the one output must not close the channel before the other has been sent.
    await process.redirect(child.stdin, child.stdout, child.stderr, send_eof=False)
    status = await child.wait()
    # What it wrote last is still on its way; a process it left behind may hold the pipes for ever.
    outputs = (process.stdout, process.stderr)
    sent = (asyncio.wait_for(output.drain(), LAST_WORDS_S) for output in outputs)
    await asyncio.gather(*sent, return_exceptions=True)
    process.exit(status if status >= 0 else 128 - status)


async def _main(folder: Path) -> None:
    machine = Machine(folder)
    machine.boot()
    server = await asyncssh.create_server(
        lambda: Login(machine),
        "127.0.0.1",
        0,
        server_host_keys=[str(folder / "host_key")],
        process_factory=lambda process: _serve_session(machine, process),
        sftp_factory=lambda channel: Files(channel, chroot=bytes(machine.home)),
        allow_scp=True,  # of old clients, and of `scp -O`
        allow_pty=False,  # a shell's lines are edited where they are typed
        encoding=None,
    )
    print(json.dumps({"ssh_port": server.get_port()}), flush=True)
    # The marketplace holds the other end: it closes when that process ends, however it ends.
    while await asyncio.to_thread(sys.stdin.readline):  # "drop": all that it may ask for
        for login in list(machine.logins):
            login.conn.abort()


if __name__ == "__main__":
    try:
        asyncio.run(_main(Path(sys.argv[1])))
    finally:
        # This process leads its group: nothing the machine started may outlive it.
        os.killpg(os.getpgrp(), signal.SIGKILL)
