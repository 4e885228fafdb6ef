"""Waiting for what comes sooner or later, a free port, and the processes of a rehearsal."""

import contextlib
import os
import socket
import time

import psutil


def eventually(true, timeout_s: float = 15.0):
    """Wait until a condition holds; the last value is returned for the assertion to show."""
    deadline = time.monotonic() + timeout_s
    while not (value := true()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return value


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def runs(process: psutil.Process) -> bool:
    """Does it run? A zombie has ended, and waits for its parent to ask how."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def ours(home) -> list[psutil.Process]:
    """Every process whose command line or environment belongs to a rehearsal in ``home``."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            if str(home) in line or process.environ().get("REHEARSAL_HOME") == str(home):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def on_machines(home) -> list[psutil.Process]:
    """Every process on a machine that a rehearsal in ``home`` has rented out, its engine too."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            at_home = process.environ().get("HOME", "").startswith(f"{home}/instances/")
            if at_home and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
