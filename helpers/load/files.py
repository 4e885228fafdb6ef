"""The file of a run: what was asked of which server, then a line for each request as it ends."""

import asyncio
import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import msgspec

from helpers.endpoint import Endpoint
from helpers.errors import writing
from helpers.load.arrivals import BEGIN_S
from helpers.load.samplers import ServerSampler
from helpers.progress import Progress

SECRET = ("api_key", "base_url", "ca_file")  # or of this machine alone: left out of a spec
PUBLIC = ("base_url", "model", "engine", "hardware", "source", "title")  # of an endpoint


class RunFile:
    """The file while the run goes on, its sampler, and the line of progress under the cell.

    Several threads write to it, and each line lands at once.

    Args:
        path: where it is, by default a new one (``new_path``); its folder is made.
        header: of the run, see ``header``.
        shown: show the progress.
    """

    def __init__(self, path: str | Path | None, header: dict, *, shown: bool = False) -> None:
        self.path, self.lock = Path(path) if path else new_path(header["label"]), threading.Lock()
        with writing(self.path.parent, "RUNS_DIR"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("wb", buffering=0)  # a killed process loses nothing
        self.problem: OSError | None = None
        self.sampler: ServerSampler | None = None
        self.enough: Callable[[float, Path], bool] = lambda seconds, path: False
        self.satisfied = False  # what ``enough`` said last
        self.label, self.of = header["label"], header.get("requests") or "?"
        self.done = self.failed = self.tokens = 0
        self.say = Progress(shown=shown)
        self.add("run", header)

    def add(self, kind: str, entry: dict) -> None:
        """Write an entry, e.g. ``add("begin", {"at": time.time()})`` at the run's time 0."""
        self._write(json.dumps({"type": kind, **entry}).encode() + b"\n")

    def keep(self, line: bytes) -> None:
        """Write a generator's line, and count it, if it belongs into the file."""
        if not line.startswith((b'{"type":"request"', b'{"type":"end"')):
            return
        self._write(line)
        entry = msgspec.json.decode(line)
        if entry["type"] == "request":
            self.done += entry["cause"] != "interrupted"
            self.failed += entry["cause"] not in ("", "interrupted")
            self.tokens += entry["output_tokens"]

    async def begin(self, at: float | None = None) -> None:
        """Start the sampler and write down the time of day ``at`` which the run begins."""
        if self.sampler:
            await asyncio.to_thread(self.sampler.start)
        self.at = round(at or time.time() + BEGIN_S, 3)
        self.add("begin", {"at": self.at})

    async def follow(self, running: Callable[[], bool]) -> None:
        """Show the progress while something runs, says not enough, and can be written."""
        while running() and not self.problem and not self.satisfied:
            await asyncio.sleep(0.1)
            self.satisfied = self.enough(time.time() - self.at, self.path)
            if self.say.updates:
                self._show()

    def close(self) -> None:
        """Stop the sampler and close the file; what threads still bring is dropped."""
        if self.sampler:
            with contextlib.suppress(Exception):  # it adds to the run, and must not cost it
                self.sampler.stop()
        self._show()
        self.say.close()
        with self.lock:
            self.file.close()

    def _write(self, line: bytes) -> None:
        with self.lock:
            if not self.file.closed and self.problem is None:
                try:
                    self.file.write(line)
                except OSError as problem:  # the disk is full: what is written stays readable
                    self.problem = problem

    def _show(self) -> None:
        done = f"{self.done} of {self.of} requests, {self.tokens} output tokens"
        self.say(f"{self.label}: {done}, {self.failed} failed")


def header(endpoint: Endpoint, spec: dict, label: str, processes: int) -> dict:
    """Return what a reader of the file must know of the run; and no key.

    Args:
        endpoint: the server.
        spec: what the load generator is told.
        label: the run's name.
        processes: how many generators share the work.
    """
    return {
        "format": 1,
        "label": label,
        "endpoint": {name: getattr(endpoint, name) for name in PUBLIC},
        **{key: value for key, value in spec.items() if key not in SECRET},
        "processes": processes,
        "client": {"cpus": os.cpu_count()},
    }


def new_path(label: str) -> Path:
    """Return the path of a new file, named by time and label, in ``RUNS_DIR`` or ``runs``."""
    words = "".join(c if c.isalnum() else "-" for c in label.lower())[:40].strip("-")
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    folder = os.environ.get("RUNS_DIR") or Path(__file__).parents[2] / "runs"
    return Path(folder) / f"{stamp}_{words}.jsonl"
