"""What is read beside the requests while a run goes on: the server's metrics, other programs."""

import contextlib
import os
import threading
import time
from collections.abc import Callable

import psutil

from helpers.endpoint import Endpoint
from helpers.load.metrics import server_metrics


class ServerSampler:
    """Reads ``/metrics`` before a run, at intervals during it, and after it.

    Args:
        endpoint: the server.
        every_s: time between readings, in seconds.
        add: takes ``"server"`` and each reading with its time ``t_s`` in the run.
    """

    def __init__(self, endpoint: Endpoint, every_s: float, add: Callable[..., None]) -> None:
        self.endpoint, self.every_s, self.add = endpoint, every_s, add
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def start(self) -> None:
        """Take the reading before the run; further ones follow where there is one."""
        self.began = time.perf_counter()
        if self._sample():
            self.thread.start()

    def stop(self) -> None:
        """Take the reading after the run."""
        self.over.set()
        if self.thread.ident:
            self.thread.join()

    def _follow(self) -> None:
        while not self.over.wait(self.every_s):
            self._sample()
        self._sample()

    def _sample(self) -> bool:
        asked = time.perf_counter()
        reading = server_metrics(self.endpoint)
        if reading is not None:
            at = (asked + time.perf_counter()) / 2 - self.began
            self.add("server", {"t_s": round(at, 3), **reading})
        return reading is not None


class OtherPrograms:
    """The processor time that programs which are not the course's take, from now on."""

    def __init__(self) -> None:
        self.began, self.used_s = time.perf_counter(), _others_s()

    def cores(self) -> float:
        """How many cores they used on average."""
        return round((_others_s() - self.used_s) / (time.perf_counter() - self.began), 2)


def _others_s() -> float:
    with contextlib.suppress(psutil.Error, OSError):  # it adds to the run, and must not cost it
        whole, ours = psutil.cpu_times(), 0.0
        mine = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
        for process in psutil.process_iter(["cmdline", "cpu_times"]):
            line = " ".join(process.info["cmdline"] or ())
            if process.pid in mine or " -m helpers." in line or "vllm" in line.lower():
                # The first four: its own time, and that of its children which have ended.
                ours += sum((process.info["cpu_times"] or ())[:4])
        return whole.user + whole.system - ours
    return 0.0
