"""What is read beside the requests while a run goes on: the server's metrics, and its GPU."""

import contextlib
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from helpers.endpoint import Endpoint
from helpers.load.files import RunFile
from helpers.load.metrics import server_metrics

if TYPE_CHECKING:
    import paramiko

GPU_QUERY = "index,utilization.gpu,memory.used,power.draw"
GPU_NAMES = ("gpu", "gpu_busy", "memory_mib", "power_w")  # of the same in a reading


class ServerSampler:
    """Reads ``/metrics`` before a run, at intervals during it, and after it.

    Args:
        endpoint: the server.
        every_s: time between readings, in seconds.
        file: takes each reading with its time ``t_s`` in the run.
    """

    def __init__(self, endpoint: Endpoint, every_s: float, file: RunFile) -> None:
        self.endpoint, self.every_s, self.file = endpoint, every_s, file
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
            told = {name: value for name, value in asdict(reading).items() if value is not None}
            self.file.add("server", {"t_s": round(at, 3), **told})
        return reading is not None


class GpuSampler:
    """Reads ``nvidia-smi`` over SSH twice a second during a run, where there is one.

    Args:
        ssh: connection to the machine.
        file: takes each reading with its time ``t_s`` in the run.
    """

    def __init__(self, ssh: "paramiko.SSHClient", file: RunFile) -> None:
        self.ssh, self.file = ssh, file

    def start(self) -> None:
        """Start reading; without an ``nvidia-smi`` there it ends at once, silently."""
        command = f"nvidia-smi --query-gpu={GPU_QUERY} --format=csv,noheader,nounits -lms 500"
        self.began = time.perf_counter()
        self.output = self.ssh.exec_command(command)[1]
        threading.Thread(target=self._follow, daemon=True).start()

    def stop(self) -> None:
        """Stop reading."""
        self.output.channel.close()

    def _follow(self) -> None:
        for line in self.output:
            reading = {"t_s": round(time.perf_counter() - self.began, 3)}
            for name, value in zip(GPU_NAMES, line.split(","), strict=False):
                with contextlib.suppress(ValueError):  # "[N/A]" or a message
                    reading[name] = float(value)
            if len(reading) > 1:
                self.file.add("gpu", reading)
