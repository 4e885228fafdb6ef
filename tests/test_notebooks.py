"""The notebooks run top to bottom, and survive a killed kernel."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from test_rehearsal import eventually

from helpers import guard, providers, rehearsal
from helpers.records import Run
from helpers.settings import PROJECT

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
IDS = [path.stem for path in NOTEBOOKS]


WITH_TEMPLATE = [*NOTEBOOKS, PROJECT / "notebooks" / "template.ipynb"]


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.fixture(scope="module")
def build():
    sys.path.insert(0, str(PROJECT / "notebooks"))
    try:
        import build
    finally:
        sys.path.remove(str(PROJECT / "notebooks"))
    return build


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_runs_from_a_fresh_kernel_and_a_stopped_rehearsal(path, own_rehearsal):
    """Alone, with nothing running before it, and with nothing rented after it."""
    notebook = read(path)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    assert not rehearsal.holds_rentals(own_rehearsal)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_committed_outputs_come_from_one_clean_run(path):
    """Counts 1..n, no error, no warning, no path of a machine, no widget, every picture told."""
    notebook = read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)
    raw = path.read_text()
    assert not re.search(r"/(root|home|tmp|work|Users)/[\w.-]+", raw)
    assert "widgets" not in notebook.metadata
    assert path.stat().st_size < 400_000
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert "![](" not in cell.source, "a picture without alternative text"


@pytest.mark.parametrize("path", WITH_TEMPLATE, ids=[*IDS, "template"])
def test_outputs_were_made_by_this_code(path, build):
    """Code changed after its outputs were made would show what it does not do."""
    notebook = read(path)
    assert notebook.metadata["course"]["code_sha256"] == build.fingerprint(notebook)
    assert notebook.metadata["course"]["seconds"] < 180
    notebook.cells[-1:-1] = [nbformat.v4.new_code_cell("1 + 1")]
    assert notebook.metadata["course"]["code_sha256"] != build.fingerprint(notebook)


@pytest.mark.parametrize("path", WITH_TEMPLATE, ids=[*IDS, "template"])
def test_images_say_what_they_show(path):
    """A picture without alternative text is nothing to those who cannot see it."""
    notebook = read(path)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                assert output.metadata["image/png"]["alt"]
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})
        for alt in re.findall(r"!\[([^\]]*)\]\(", cell.source if cell.cell_type != "code" else ""):
            assert alt
    assert "widgets" not in notebook.metadata


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_has_the_skeleton_of_a_chapter(path):
    """A reader finds needs, time, cost, exercises and a summary where the last chapter had them."""
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    for part in (
        "<!-- you will:",
        "| **needs**",
        "| **time**",
        "| **cost**",
        "<!-- navigation -->",
    ):
        assert part in text
    assert 1 <= text.count("### Exercise") <= 4
    assert text.count("<summary>Solution</summary>") == text.count("### Exercise")
    first = next(cell.source for cell in read(path).cells if cell.cell_type == "code")
    assert "provider" in first


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_cells_are_short(path):
    """At most 15 lines a cell (imports: 20), 88 letters a line, three code cells in a row."""
    kinds = []
    for cell in read(path).cells:
        kinds.append(cell.cell_type)
        if cell.cell_type == "code":
            lines = cell.source.splitlines()
            assert len(lines) <= (20 if kinds.count("code") == 1 else 15), cell.source
            assert max(map(len, lines)) <= 88, cell.source
    assert ["code"] * 4 not in [kinds[i : i + 4] for i in range(len(kinds))]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_internal_links_lead_somewhere(path):
    """Links and pictures that are files exist."""
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#]+)", cell.source):
                if not target.startswith("http"):
                    assert (path.parent / target).exists(), target


def test_killed_kernel_leaves_readable_records_and_a_findable_instance(own_rehearsal, tmp_path):
    """kill -9 in the middle of a run: every finished request is on disk, the rental is adopted."""
    file = tmp_path / "run.jsonl"
    script = f"""
        import asyncio
        from helpers import guard, load, providers, serving, settings, ssh

        config = settings.load()
        provider = providers.connect(config)
        instance = guard.rent(provider, serving.ServingSpec(), "mistral", config, progress=print)
        tunnel = ssh.tunnel(instance, config)
        endpoint = serving.endpoint(tunnel.base_url, poll_s=0.3)
        workload = load.Synthetic(input_tokens=16, output_tokens=8)
        asyncio.run(load.run(endpoint, workload, load.ClosedLoop(users=2), requests=10_000,
                             path={str(file)!r}))
    """
    kernel = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.DEVNULL
    )
    try:
        finished = b'"type":"request"'
        assert eventually(lambda: file.exists() and file.read_bytes().count(finished) > 5, 90)
    finally:
        os.kill(kernel.pid, signal.SIGKILL)
        kernel.wait()
    time.sleep(0.5)
    run = Run.load(file)
    assert len(run.records) > 5
    assert all(record.output_tokens == 8 for record in run.records if record.ok)
    provider = providers.connect(own_rehearsal)
    [left] = provider.instances()
    assert guard.find(provider, "mistral").id == left.id
    again = guard.rent(provider, None, "mistral", own_rehearsal, progress=print)
    assert again.id == left.id


def test_navigation_and_contents_are_up_to_date(tmp_path):
    """``build.py`` changes nothing when it is run again."""
    before = {path: path.read_bytes() for path in [*NOTEBOOKS, PROJECT / "README.md"]}
    subprocess.run([sys.executable, PROJECT / "notebooks" / "build.py"], check=True)
    after = {path: path.read_bytes() for path in before}
    changed = [path.name for path in before if before[path] != after[path]]
    for path, content in before.items():
        Path(path).write_bytes(content)
    assert changed == []
