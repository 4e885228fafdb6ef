"""A rented machine of the rehearsal: a real SSH server over a private folder of this machine.

Run by the marketplace as ``python -m helpers.rehearsal.instance FOLDER``. It tells its state in
JSON lines on standard output and ends, with everything it started, when standard input closes.
"""

import asyncio
import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import asyncssh

LAST_WORDS_S = 2.0
# Threads that spin while they wait for each other collapse when another program wants a core: with
# 300 turns of waiting nothing is lost alone, and 50 instead of 0.3-3 tokens/s are left beside one.
SHIM = """#!/bin/sh
export GOMP_SPINCOUNT="${{GOMP_SPINCOUNT:-300}}"
exec "{python}" -m helpers.rehearsal.engine "$@"
"""


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
        self.sockets = Path(self.config["sockets"])
        # Held open for as long as this process lives: the engine exits when it closes.
        self.alive_fd, self._hold = os.pipe()
        self.logins: set[Login] = set()
        self.opens = 0.0
        core = self.config["env"].get("REHEARSAL_CORE", "")
        if core.isdigit() and hasattr(os, "sched_setaffinity"):
            # A core of its own, as a rented machine has its own GPU: all it starts stays there.
            os.sched_setaffinity(0, {int(core) % os.cpu_count()})

    def prepare(self) -> None:
        """Lay out the home directory and the ``vllm`` command."""
        bin_dir = self.home / "bin"
        bin_dir.mkdir(parents=True, exist_ok=True)
        shim = bin_dir / "vllm"
        shim.write_text(SHIM.format(python=sys.executable))
        shim.chmod(0o755)

    def environment(self) -> dict[str, str]:
        """A clean environment: nothing of the reader's own (their keys!) enters the machine."""
        return {
            "HOME": str(self.home),
            "USER": "root",
            "LANG": "C.UTF-8",
            "PATH": os.pathsep.join(
                [str(self.home / "bin"), str(Path(sys.executable).parent), os.defpath]
            ),
            "REHEARSAL_MODEL": self.config["model"],
            "REHEARSAL_SOCKETS": str(self.sockets),
            "LOAD_UNIX_SOCKETS": str(self.sockets),  # for a load generator on this machine
            "REHEARSAL_ALIVE_FD": str(self.alive_fd),
            "REHEARSAL_VLLM_ENV": self.config["vllm_env"],
            **self.config["env"],
        }

    def _place(self) -> dict:
        return {"cwd": self.home, "env": self.environment(), "pass_fds": [self.alive_fd]}

    async def start(self, command: list[str], **options) -> asyncio.subprocess.Process:
        """Start a process of the machine in its home directory."""
        return await asyncio.create_subprocess_exec(*command, **self._place(), **options)

    def boot(self) -> None:
        """Run what the renter asked for: the onstart script, or the image's server with args."""
        log = (self.folder / "container.log").open("ab")
        if self.config["args"] is not None:
            command = ["vllm", "serve", *self.config["args"]]
        elif self.config["onstart"]:
            (self.home / "onstart.sh").write_text(self.config["onstart"])
            command = ["/bin/sh", "onstart.sh"]
        else:
            return
        vllm = shutil.which(command[0], path=self.environment()["PATH"])
        subprocess.Popen(
            [vllm or command[0], *command[1:]],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            **self._place(),
        )

    def tell(self, **state) -> None:
        """One JSON line to the marketplace."""
        print(json.dumps(state), flush=True)


class Login(asyncssh.SSHServer):
    """Public-key login as root, commands, and forwarding to the machine's own ports."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Count the connection: a used machine is not idle."""
        self.conn = conn
        self.machine.logins.add(self)
        self.machine.tell(connections=len(self.machine.logins))
        if time.monotonic() < self.machine.opens:
            conn.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Uncount it."""
        self.machine.logins.discard(self)
        self.machine.tell(connections=len(self.machine.logins))

    def begin_auth(self, username: str) -> bool:
        """Read the keys at each login: they may be attached and detached while it runs."""
        if username == "root":
            with contextlib.suppress(ValueError):
                self.conn.set_authorized_keys(str(self.machine.folder / "authorized_keys"))
        return True  # a login is always asked to prove itself

    def connection_requested(self, dest_host, dest_port, orig_host, orig_port):
        """Forward ``localhost:PORT`` of the machine, and nothing else of this computer."""
        socket = self.machine.sockets / f"{dest_port}.sock"
        if dest_host not in ("localhost", "127.0.0.1", "::1") or not socket.exists():
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_CONNECT_FAILED, f"nothing listens on {dest_host}:{dest_port}"
            )
        return self.conn.forward_unix_connection(str(socket))


async def _serve_session(machine: Machine, process: asyncssh.SSHServerProcess) -> None:
    """Run one command, or a login shell on a terminal, and carry its bytes both ways."""
    shell = ["/bin/sh", "-c", process.command] if process.command else ["/bin/sh", "-i"]
    if process.get_terminal_type():
        child, outputs, write, close = await _on_terminal(machine, shell, process)
    else:
        pipe = asyncio.subprocess.PIPE
        child = await machine.start(shell, stdin=pipe, stdout=pipe, stderr=pipe)
        outputs = [(child.stdout, process.stdout), (child.stderr, process.stderr)]
        write, close = child.stdin.write, child.stdin.close
    pumps = [asyncio.create_task(_pump(source, sink)) for source, sink in outputs]
    feeding = asyncio.create_task(_feed(process, write, close))
    status = await child.wait()
    # What it wrote last is still on its way; a process it left behind may hold the pipes for ever.
    await asyncio.wait(pumps, timeout=LAST_WORDS_S)
    feeding.cancel()
    for pump in pumps:
        pump.cancel()
    process.exit(status if status >= 0 else 128 - status)


async def _on_terminal(machine: Machine, shell: list[str], process) -> tuple:
    master, terminal = pty.openpty()
    # A session of its own, as a terminal needs: it hangs up when this process goes.
    child = await machine.start(
        shell, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
    )
    os.close(terminal)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(master, "rb", 0)
    )
    end_of_input = b"\x04"
    return (
        child,
        [(reader, process.stdout)],
        lambda data: os.write(master, data),
        lambda: os.write(master, end_of_input),
    )


async def _pump(source: asyncio.StreamReader, sink: asyncssh.SSHWriter) -> None:
    # A terminal says so when its last process has gone, and the client may go at any time.
    with contextlib.suppress(OSError, asyncssh.Error):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()


async def _feed(process: asyncssh.SSHServerProcess, write, close) -> None:
    with contextlib.suppress(OSError, asyncssh.Error):
        while True:
            try:
                data = await process.stdin.read(1 << 16)
            except (asyncssh.TerminalSizeChanged, asyncssh.BreakReceived):
                continue
            if not data:
                break
            write(data)
        close()


async def _main(folder: Path) -> None:
    machine = Machine(folder)
    machine.prepare()
    host_key = folder / "host_key"
    if not host_key.exists():
        asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(host_key))
        host_key.chmod(0o600)
    server = await asyncssh.create_server(
        lambda: Login(machine),
        "127.0.0.1",
        0,
        server_host_keys=[str(host_key)],
        process_factory=lambda process: _serve_session(machine, process),
        sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=str(machine.home)),
        password_auth=False,
        kbdint_auth=False,
        encoding=None,
        line_editor=False,
        reuse_address=True,
    )
    # A fault of the rehearsal: the machine runs, its SSH server does not let anybody in yet.
    machine.opens = time.monotonic() + machine.config["ssh_after_s"]
    machine.tell(ssh_port=server.get_port())
    machine.boot()
    # The marketplace holds the other end: it closes when that process ends, however it ends.
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while await reader.readline():  # "drop": the one thing the marketplace may ask for
        for login in list(machine.logins):
            login.conn.abort()


if __name__ == "__main__":
    try:
        asyncio.run(_main(Path(sys.argv[1])))
    finally:
        # This process leads its group: nothing the machine started may outlive it.
        os.killpg(os.getpgrp(), signal.SIGKILL)
