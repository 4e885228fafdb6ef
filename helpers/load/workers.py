"""Where the load is made: in processes here, on the machine that serves, or by an executor."""

import asyncio
import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

from helpers.errors import CourseError
from helpers.load.files import RunFile

if TYPE_CHECKING:
    import paramiko

READY_S = 60.0  # a generator that is not ready by then never will be
LATE_S = 0.5  # a worker that is ready later than this does not begin
START_IN_S = 3.0  # the time an executor's workers get to begin together
ROOT = Path(__file__).parents[2]
COMMAND = ["-m", "helpers.load.generator"]
ARCHIVE = ".llm-load.zip"


@dataclass(frozen=True)
class Local:
    """In processes on this machine, so that a busy notebook disturbs no clock read.

    Args:
        processes: how many; one carries thousands of streams.
    """

    processes: int = 1
    base_url: ClassVar[str] = ""

    async def play(self, specs: list[dict], file: RunFile) -> None:
        """Play each spec in a process.

        Raises:
            CourseError: one does not start or breaks, or the server does not answer it.
        """
        await _together([_Player(_start(), spec, file) for spec in specs], file)


@dataclass(frozen=True)
class OverSSH:
    """On the machine that serves, so that the reader's own line adds nothing to the times.

    Its ``python3`` needs httptools, msgspec and uvloop, which come with vLLM.

    Args:
        client: a connection to it.
        base_url: root of the API as that machine sees it.
    """

    client: "paramiko.SSHClient"
    base_url: str = "http://127.0.0.1:8000/v1"
    processes: ClassVar[int] = 1

    async def play(self, specs: list[dict], file: RunFile) -> None:
        """Copy the generator there and play the spec; raises as ``Local``."""
        with self.client.open_sftp() as files:
            files.putfo(_packed(), ARCHIVE)
        command = f"PYTHONPATH={ARCHIVE} exec python3 {' '.join(COMMAND)}"
        await _together([_Player(_Remote(self.client, command), specs[0], file)], file)


@dataclass(frozen=True)
class OnExecutor:
    """In processes of an executor's workers, one task each.

    For several machines: ``dask.distributed.Client(...).get_executor()``; their clocks must agree.
    Its workers cannot be stopped: what they have not returned when a run is cancelled is lost.

    Args:
        executor: where.
        processes: how many, at most as many as it has free workers.
    """

    executor: Executor
    processes: int = 1
    base_url: ClassVar[str] = ""

    async def play(self, specs: list[dict], file: RunFile) -> None:
        """Have each spec played by a worker and keep what they return.

        Raises:
            CourseError: a worker broke or came too late, or the server does not answer it.
        """
        begin = time.time() + START_IN_S
        tasks = [self.executor.submit(play, spec, begin, file.path.name) for spec in specs]
        following = asyncio.gather(*map(asyncio.wrap_future, tasks), return_exceptions=True)
        try:
            await file.begin(begin)
            await file.follow(lambda: not following.done())
        finally:
            following.cancel()
        played = await following
        for line in chain.from_iterable(one for one in played if isinstance(one, list)):
            file.keep(line)
        if broken := [one for one in played if isinstance(one, BaseException)]:
            raise broken[0]


Where = Local | OverSSH | OnExecutor


class _Remote:
    """A process over SSH, with the names of one that was started here."""

    def __init__(self, client: "paramiko.SSHClient", command: str) -> None:
        self.stdin, lines, self.stderr = client.exec_command(command)
        self.stdout = (line.encode() for line in lines)
        self.kill = self.wait = lines.channel.close


class _Player:
    """A generator's process, wherever it is, and the thread that keeps its lines."""

    def __init__(self, process: Any, spec: dict, file: RunFile) -> None:
        self.process, self.file = process, file
        self.ready: dict = {}
        self.ended = False
        self.tell(json.dumps(spec))
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def running(self) -> bool:
        """Whether its output has not ended."""
        return self.thread.is_alive()

    def tell(self, line: str) -> None:
        """Write it a line."""
        with contextlib.suppress(OSError):  # it has ended; its standard error tells why
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()

    def stop(self) -> None:
        """End it, waiting for its last lines."""
        if self.ready:  # before that it has measured nothing, and does not listen
            self.tell("enough" if self.file.satisfied else "stop")
            self.thread.join(5)
        self.process.kill()
        self.thread.join(5)
        with contextlib.suppress(OSError):  # of what one that died did not take
            self.process.stdin.close()
        self.process.wait()

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.file.keep(line)
            if line.startswith(b'{"type":"ready"'):
                self.ready = json.loads(line)
            self.ended |= line.startswith(b'{"type":"end"')


async def _together(players: list[_Player], file: RunFile, at: float | None = None) -> None:
    """Wait until all are ready, have them begin (``at`` a time of day), and follow them."""
    deadline = time.monotonic() + READY_S
    try:
        while any(one.running() and not one.ready for one in players):
            await asyncio.sleep(0.01)
            if time.monotonic() > deadline:
                break
        if error := next(filter(None, (one.ready.get("error") for one in players)), ""):
            what = f"the server does not answer: {error}"
            hint = "is it still rented (`python -m helpers status`), and is the tunnel open?"
            raise CourseError(what, hint)
        if all(player.ready for player in players):
            if at and (late_s := time.time() - at) > LATE_S:
                what = f"a worker came {late_s:.1f} s too late to begin"
                raise CourseError(what, "use as many processes as are free")
            await file.begin(at)
            for player in players:
                player.tell(f"go {at}" if at else "go")  # their clocks need not agree
            await file.follow(lambda: any(player.running() for player in players))
    finally:
        for player in players:
            player.stop()
    broken = [player for player in players if not player.ended]
    if broken and not file.problem:
        lines = broken[0].process.stderr.read().decode("utf-8", "replace").strip().splitlines()
        what = f"the load generator ended before its run: {(lines or ['without a word'])[-1]}"
        hint = f"its Python needs httptools, msgspec and uvloop; measured so far: {file.path.name}"
        raise CourseError(what, hint)


def play(spec: dict, begin: float, name: str) -> list[bytes]:
    """Play a spec on this machine, from an agreed time of day, and return its lines.

    Raises:
        CourseError: it broke or came too late, or the server does not answer it.
    """
    with TemporaryDirectory() as folder:
        file = RunFile(Path(folder) / name, {"label": name})
        try:
            asyncio.run(_together([_Player(_start(), spec, file)], file, begin))
        finally:
            file.close()
        return file.path.read_bytes().splitlines(keepends=True)


def _start() -> subprocess.Popen:
    pipe, environment = subprocess.PIPE, {**os.environ, "PYTHONPATH": str(ROOT)}
    # In a session of its own: Ctrl-C is for the parent, which says `stop`.
    return subprocess.Popen(
        [sys.executable, *COMMAND], stdin=pipe, stdout=pipe, stderr=pipe,
        env=environment, start_new_session=True,
    )  # fmt: skip


def _packed() -> io.BytesIO:
    """Return the generator's code as a zip, from which Python imports as from a folder."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for folder in ("helpers", "helpers/load", "helpers/load/client"):
            for part in (ROOT / folder).glob("*.py"):
                # A room's public face would import far more than the generator.
                text = "" if part.name == "__init__.py" else part.read_text()
                archive.writestr(f"{folder}/{part.name}", text)
    packed.seek(0)
    return packed
