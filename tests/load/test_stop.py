"""The stop button, pressed in a real kernel at five moments of a measurement."""

import queue
import socket
import time
from types import SimpleNamespace

import pytest
from jupyter_client import KernelManager
from support.waiting import eventually

from helpers.records import Run
from helpers.settings import PROJECT

SETUP = """
import time
from helpers import load, measure, plots
from helpers.endpoint import Endpoint
from helpers.load import levels
from helpers.plots.style import Picture
endpoint, silent = (Endpoint(base_url=url, model="m") for url in {urls})
work = load.Synthetic(input_tokens=8, output_tokens=8)
options = dict(folder={folder!r}, server_every_s=None)
promise = measure.Objective(ttft_ms=1000, tpot_ms=500)
def slow(*words, **named):
    print("NOW", flush=True)
    time.sleep({pause})
"""
SWEEP = "runs = await load.sweep(endpoint, work, users=(1, 2), **options)\n"
LONG = SWEEP.replace("**options", "duration_s=60, **options")
DRAWN = "plots.throughput(runs)"


class Kernel:
    """What runs a notebook's cells, and its stop button."""

    def __init__(self):
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=str(PROJECT))
        self.open()

    def open(self):
        """Look at it from a browser."""
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(60)

    def close(self):
        """End it."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def cell(self, code, stop_when=None):
        """Run a cell, and press stop as soon as a condition holds for what it has printed."""
        told = SimpleNamespace(text="", shown=[], error=None)
        asked, deadline = self.client.execute(code), time.monotonic() + 60
        while time.monotonic() < deadline:
            if stop_when and stop_when(told.text):
                self.manager.interrupt_kernel()
                stop_when = None
            try:
                message = self.client.get_iopub_msg(timeout=0.05)
            except queue.Empty:
                continue
            kind, content = message["msg_type"], message["content"]
            if message["parent_header"].get("msg_id") != asked:
                continue
            if kind == "stream":
                told.text += content["text"]
            elif kind == "error":
                told.error = content
            elif kind in ("execute_result", "display_data"):
                told.shown += content["data"].keys()
            elif kind == "status" and content["execution_state"] == "idle":
                return told
        raise AssertionError(f"the cell did not end: {told}")


@pytest.fixture(scope="module")
def kernel():
    """One for all moments, as a reader has it."""
    kernel = Kernel()
    yield kernel
    kernel.close()


@pytest.fixture
def notebook(kernel, paced, tmp_path):
    """The kernel with a server that answers and one that never does."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent_url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        urls = [paced("--ttft", "0.02", "--itl", "0.001").base_url, silent_url]
        told = kernel.cell(SETUP.format(urls=urls, folder=str(tmp_path), pause=2))
        assert told.error is None
        yield kernel


@pytest.mark.parametrize(
    ("code", "files", "before"),
    [
        (SWEEP.replace("endpoint", "silent"), ["0001_users"], '"run"'),
        (LONG, ["0001_users"], '"request"'),
        (
            "same, levels.unseen = levels.unseen, lambda w, n: (n == 2 and slow(), same(w, n))[1]\n"
            f"try:\n    {SWEEP}finally:\n    levels.unseen = same\n",
            ["0001_users", "0002_users"],
            "",
        ),
        (
            "runs = await load.search(endpoint, work, promise, duration_s=60, **options)\n",
            ["00001.00"],
            '"request"',
        ),
    ],
    ids=["before the first level", "within a level", "between two levels", "in the search"],
)
def test_a_stopped_measurement_is_no_result(notebook, tmp_path, code, files, before):
    """One short error that says how far it came and where every record is; no picture."""
    files = [tmp_path / f"{name}.jsonl" for name in files]

    def now(text: str) -> bool:
        return before in files[-1].read_text() if before and files[-1].exists() else "NOW" in text

    told = notebook.cell(code + DRAWN, now)
    assert told.error["ename"] == "Stopped" and len(told.error["traceback"]) == 2
    assert set(told.shown) <= {"text/plain"}
    said = told.error["evalue"]
    assert all(file.name in said for file in files)
    *whole, cut = map(Run.read, files)
    assert f"{cut.label}; the records are in" in said and "(stopped after " in cut.label
    assert not any(run.interrupted for run in whole)
    assert {record.cause for run in (*whole, cut) for record in run.records} <= {"", "interrupted"}
    assert notebook.cell("print('runs' in dir())").text == "False\n"


@pytest.mark.parametrize("part", ["plots.load.picture", "Picture.savefig"])
def test_no_half_of_a_picture(notebook, part):
    """Stopped while it is drawn, or while it is made a PNG: nothing of it is shown."""
    assert "image/png" in notebook.cell(SWEEP + DRAWN).shown
    patched = f"same, {part} = {part}, slow\ntry:\n    display({DRAWN})\n"
    told = notebook.cell(
        f"{patched}finally:\n    {part} = same; del runs", lambda text: "NOW" in text
    )
    assert told.error["ename"] == "KeyboardInterrupt" and told.shown == []


def test_a_browser_that_is_closed_costs_no_record(notebook, tmp_path):
    """The kernel goes on; whoever comes back finds the name bound and can draw."""
    notebook.client.execute(SWEEP)
    assert eventually((tmp_path / "0001_users.jsonl").exists)
    notebook.client.stop_channels()
    notebook.open()
    told = notebook.cell(DRAWN)
    assert told.error is None and "image/png" in told.shown
