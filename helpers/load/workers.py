"""The generator's processes: started here, on the rented instance, or by an executor."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from helpers.errors import CourseError
from helpers.load.files import RunFile
from helpers.load.progress import RunProgress

if TYPE_CHECKING:
    import paramiko

READY_S = 60.0  # a generator that is not ready by then never will be
START_IN_S = 3.0  # the time an executor's workers get to begin together
# What the generator consists of; it needs Python's standard library and no more.
PARTS = (
    "__init__",
    "_moved",
    "errors",
    "load/arrivals",
    "load/workload",
    "load/users",
    "load/generator",
)
PARTS += tuple(
    f"load/client/{name}"
    for name in ("__init__", "http1", "wire", "general", "stream", "eventloop")
)
COMMAND = ["-m", "helpers.load.generator"]


class Shard:
    """A generator's process, wherever it is, and the thread that keeps its lines.

    Args:
        spec: what it plays.
        file: takes its records.
        bar: is told of each.
        streams: its standard input, output and error.
        kill: ends it by force.
    """

    def __init__(
        self,
        spec: dict,
        file: RunFile,
        bar: RunProgress,
        streams: tuple[BinaryIO, BinaryIO, BinaryIO],
        kill: Callable[[], None],
    ) -> None:
        self.file, self.bar, self.kill = file, bar, kill
        self.stdin, self.stdout, self.stderr = streams
        self.reap: Callable[[], object] = lambda: None  # of a child process
        self.ready = self.ended = False
        self.unreachable = ""
        self.tell(json.dumps(spec))
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()

    @classmethod
    def here(cls, spec: dict, file: RunFile, bar: RunProgress) -> "Shard":
        """Start it on this machine."""
        process = _start()
        streams = (process.stdin, process.stdout, process.stderr)
        shard = cls(spec, file, bar, streams, process.kill)
        shard.reap = process.wait
        return shard

    @classmethod
    def there(
        cls, spec: dict, file: RunFile, bar: RunProgress, ssh: "paramiko.SSHClient"
    ) -> "Shard":
        """Copy the generator over SSH and start it with that machine's own Python."""
        folder = ".llm-load"
        with ssh.open_sftp() as files:
            package = f"{folder}/helpers"
            for path in (folder, package, f"{package}/load", f"{package}/load/client"):
                if path.rpartition("/")[2] not in files.listdir(path.rpartition("/")[0] or "."):
                    files.mkdir(path)
            for part in PARTS:
                name = f"helpers/{part}.py"
                files.put(str(Path(__file__).parents[2] / name), f"{folder}/{name}")
            files.open(f"{package}/load/__init__.py", "w").close()  # there only the generator
        channel = ssh.get_transport().open_session()
        channel.exec_command(f"cd {folder} && exec python3 {' '.join(COMMAND)}")
        streams = channel.makefile("wb"), channel.makefile("rb"), channel.makefile_stderr("rb")
        return cls(spec, file, bar, streams, channel.close)

    @property
    def running(self) -> bool:
        """Its output has not ended."""
        return self.thread.is_alive()

    def tell(self, line: str) -> None:
        """Write it a line."""
        try:
            self.stdin.write(line.encode() + b"\n")
            self.stdin.flush()
        except OSError:
            pass  # it has ended; `complaint` tells why

    def stop(self) -> None:
        """End it if it still runs, waiting for its last lines."""
        if self.running:
            self.tell("stop")
            self.thread.join(5)
        if self.running:
            self.kill()
            self.thread.join(5)
        with contextlib.suppress(OSError):  # of what one that died did not take
            self.stdin.close()
        self.reap()

    def complaint(self) -> str:
        """Return the last line it wrote to its standard error."""
        self.kill()
        lines = self.stderr.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "without a word"

    def _follow(self) -> None:
        for line in self.stdout:
            keep(line, self.file, self.bar)
            if line.startswith(b'{"type":"ready"'):
                self.unreachable, self.ready = json.loads(line)["error"], True
            elif line.startswith(b'{"type":"running"'):
                self.bar.running[self] = json.loads(line)["count"]
            self.ended |= line.startswith(b'{"type":"end"')


def keep(line: bytes, file: RunFile, bar: RunProgress) -> None:
    """Keep a generator's line in the run's file if it belongs there."""
    if line.startswith((b'{"type":"request"', b'{"type":"end"')):
        file.write(line)
        bar.count(line)


async def ready(shards: list[Shard], base_url: str) -> None:
    """Wait until all are ready to send.

    Raises:
        CourseError: one does not start, or the server does not answer it.
    """
    deadline = time.monotonic() + READY_S
    while not all(shard.ready for shard in shards):
        await asyncio.sleep(0.01)
        for shard in shards:
            if time.monotonic() > deadline or not (shard.running or shard.ready):
                raise CourseError(f"the load generator did not start: {shard.complaint()}")
    _answers(base_url, [shard.unreachable for shard in shards])


def _answers(base_url: str, errors: list[str]) -> None:
    if error := next(filter(None, errors), ""):
        hint = "is the server up and the tunnel open?"
        raise CourseError(f"{base_url} does not answer: {error}", hint)


async def on_executor(
    executor: Executor, specs: list[dict], file: RunFile, bar: RunProgress, base_url: str
) -> None:
    """Have each spec played by a worker of ``executor`` and keep what they return.

    Raises:
        CourseError: a worker broke or came too late, or the server does not answer it.
    """
    begin = time.time() + START_IN_S
    file.add("begin", {"at": round(begin, 3)})
    futures = [executor.submit(play, {**spec, "start_at": begin}) for spec in specs]
    starts = []
    for lines in await asyncio.gather(*map(asyncio.wrap_future, futures)):
        starts.append(json.loads(lines.partition(b"\n")[0]))
        for line in lines.splitlines(keepends=True):
            keep(line, file, bar)
    _answers(base_url, [start["error"] for start in starts])
    if late := [start["late_s"] for start in starts if start["late_s"]]:
        raise CourseError(
            f"{len(late)} of {len(starts)} workers came {max(late):.1f} s too late to take part",
            f"processes= at most as many as are free; the others' records are in {file.path}",
        )


def play(spec: dict) -> bytes:
    """Play a spec in a generator's process on this machine and return its lines.

    Where it cannot take part, its first line says why and is the only one.

    Raises:
        CourseError: it broke.
    """
    process = _start()
    lines, errors = process.communicate(json.dumps(spec).encode() + b"\n")
    if process.returncode:
        raise CourseError(f"a worker's load generator broke: {errors.decode()[-300:]}")
    return lines


def _start() -> subprocess.Popen:
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, *COMMAND], stdin=pipe, stdout=pipe, stderr=pipe, env=environment
    )
