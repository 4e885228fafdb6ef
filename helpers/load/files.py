"""The file of a run: what was asked of which server, then a line for each request as it ends."""

import json
import os
import platform
import threading
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from helpers.endpoint import Endpoint

PUBLIC = ("model", "engine", "hardware", "source", "title")  # of an endpoint, in a run's file


class RunFile:
    """The file while the run goes on. Several threads write to it, and each line lands at once.

    Args:
        path: where it is, by default a new one (``new_path``); its folder is made.
        header: of the run, see ``header``.
    """

    def __init__(self, path: str | Path | None, header: dict) -> None:
        self.path, self.lock = Path(path) if path else new_path(header["label"]), threading.Lock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("wb", buffering=0)  # a killed process loses nothing
        self.problem: OSError | None = None
        self.add("run", header)

    def add(self, kind: str, entry: dict) -> None:
        """Write an entry, e.g. ``add("begin", {"at": time.time()})`` at the run's time 0."""
        self.write(json.dumps({"type": kind, **entry}).encode() + b"\n")

    def write(self, line: bytes) -> None:
        """Write a line that is JSON already and ends in a newline."""
        with self.lock:
            if not self.file.closed and self.problem is None:
                try:
                    self.file.write(line)
                except OSError as problem:  # the disk is full: what is written stays readable
                    self.problem = problem

    def close(self) -> None:
        """Close the file; what threads still bring is dropped."""
        with self.lock:
            self.file.close()


def header(endpoint: Endpoint, spec: dict, label: str, processes: int) -> dict:
    """Return what a reader of the file must know of the run; no key, no password.

    Args:
        endpoint: the server.
        spec: what the load generator is told.
        label: the run's name.
        processes: how many generators share the work.
    """
    asked = {key: value for key, value in spec.items() if key not in ("api_key", "base_url")}
    return {
        "format": 1,
        "label": label,
        "started_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "endpoint": {
            "base_url": _without_password(endpoint.base_url),
            **{name: getattr(endpoint, name) for name in PUBLIC},
        },
        **asked,
        "processes": processes,
        "client": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        },
    }


def new_path(label: str) -> Path:
    """Return the path of a new file, named by time and label, in ``RUNS_DIR`` or ``runs``."""
    words = "".join(c if c.isalnum() else "-" for c in label.lower())[:40].strip("-")
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    folder = os.environ.get("RUNS_DIR") or Path(__file__).parents[2] / "runs"
    return Path(folder) / f"{stamp}_{words}.jsonl"


def _without_password(base_url: str) -> str:
    url = urlsplit(base_url)
    return url._replace(netloc=url.netloc.rpartition("@")[2], query="").geturl()
