"""The notebooks run top to bottom, and survive a killed kernel."""

import ast
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
from fingerprint import fingerprints
from nbclient import NotebookClient
from support.chromium import CHROMIUM, IN_JUPYTERLAB
from support.pasting import needs, paste, solutions, with_everything_tried
from support.waiting import eventually

from helpers import rehearsal, rent
from helpers.records import Run
from helpers.rehearsal import model
from helpers.settings import PROJECT

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
IDS = [path.stem for path in NOTEBOOKS]
WITH_TEMPLATE = [*NOTEBOOKS, PROJECT / "notebooks" / "template.ipynb"]
TEMPLATE_IDS = [*IDS, "template"]
BUILD = "python notebooks/publish/build.py"

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmU"
SECRETS = [
    re.compile(r"\bhf_\w{20}"),
    re.compile(r"\b[0-9a-f]{64}\b"),
    re.compile(r"\brpa_\w{20}"),
    re.compile(r"PRIVATE KEY-----\s*\w"),
]


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", WITH_TEMPLATE, ids=TEMPLATE_IDS)
def test_runs_from_a_fresh_kernel_and_a_stopped_rehearsal(path, own_rehearsal, monkeypatch):
    """Alone; its solutions too, and its marked cells typed elsewhere; nothing stays rented."""
    if path.stem == IN_JUPYTERLAB and CHROMIUM:
        pytest.skip("test_browser.py runs it, in JupyterLab")
    if path == NOTEBOOKS[0]:
        model.path(own_rehearsal)  # the first run downloads it
        refuse_the_network(monkeypatch)
    notebook = with_everything_tried(read(path))
    resources = {"metadata": {"path": path.parent}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    assert not rehearsal.holds_rentals(own_rehearsal)
    if path == NOTEBOOKS[0]:
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        shown = "".join(output.get("text", "") for output in outputs)
        assert shown.count("OLD") == 4, "a reader on a train is told that the prices are old"


def refuse_the_network(monkeypatch) -> None:
    """Nothing but this machine answers, as on a train."""
    for kind in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(kind, "http://127.0.0.1:9")
        monkeypatch.setenv(kind.upper(), "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.mark.parametrize("path", WITH_TEMPLATE, ids=TEMPLATE_IDS)
def test_cells_to_copy_say_so(path):
    """Where an API itself is called, the first line names what the cell needs, as 00 explains."""
    explained = "\n".join(cell.source for cell in read(NOTEBOOKS[0]).cells)
    for cell in read(path).cells:
        if cell.cell_type != "code":
            continue
        if "Works anywhere" in cell.source or re.search(r"OpenAI\(|SSHClient\(", cell.source):
            assert needs(cell.source) is not None, cell.source
            for name in needs(cell.source):
                assert re.search(rf"^\|.*`{name}`.*\|.*\|$", explained, re.M), name


@pytest.mark.parametrize(
    "cell",
    ["print(unknown)", "for i in 'ab':\n    print(i)\nprint(i)", "await nothing", "exit()"],
    ids=["a name that is not given", "a block without its blank line", "await", "the end"],
)
def test_a_cell_that_cannot_be_pasted_is_noticed(cell):
    """Else the test above would hold for every cell."""
    paste("import asyncio\nawait asyncio.sleep(0)\nprint(known)", {"known": [1, "two"]})
    with pytest.raises(AssertionError):
        paste(cell, {"known": 1})


@pytest.mark.parametrize("path", WITH_TEMPLATE, ids=TEMPLATE_IDS)
def test_committed_outputs_come_from_one_clean_run(path):
    """Counts 1..n, no error, no warning, no path of a machine, no secret, no widget."""
    notebook = read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)
    shown = "\n".join(
        output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs
    )
    assert not re.search(r"\w+Warning: ", shown)
    for secret in SECRETS:
        assert not secret.search(shown), secret
    raw = path.read_text()
    assert not re.search(r"/(root|home|tmp|work|Users)/[\w.-]+", raw)
    assert "widget" not in raw
    assert path.stat().st_size < 400_000


@pytest.mark.parametrize(
    "shown",
    ["hf_AbCdEfGhIjKlMnOpQrStUvWx", "0123456789abcdef" * 4, "rpa_ABCDEFGHIJ0123456789KLMNOP", KEY],
)
def test_a_secret_in_an_output_is_noticed(shown):
    """One of each kind that the course handles: Hugging Face, Vast.ai, RunPod, SSH."""
    assert any(secret.search(f"key: {shown}\n") for secret in SECRETS)


@pytest.mark.parametrize("path", WITH_TEMPLATE, ids=TEMPLATE_IDS)
def test_outputs_were_made_by_this_code(path):
    """Code changed after its outputs were made would show what it does not do."""
    notebook = read(path)
    made_by = {
        key: notebook.metadata["course"].get(key) for key in ("code_sha256", "helpers_sha256")
    }
    assert made_by == fingerprints(notebook), f"{BUILD} --run {path.stem}"


def test_running_stays_short():
    """Three minutes a notebook, twenty for all, by the record of the run that made the outputs."""
    seconds = [read(path).metadata["course"]["seconds"] for path in NOTEBOOKS]
    assert max(seconds) < 180
    assert sum(seconds) < 1200


@pytest.mark.parametrize("path", WITH_TEMPLATE, ids=TEMPLATE_IDS)
def test_twenty_minutes_are_enough_to_read_it(path):
    """At most 2,000 words, what is folded and derived included, and 60 cells."""
    cells = read(path).cells
    prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
    assert len("\n".join(prose).split()) <= 2_000
    assert len(cells) <= 60


@pytest.mark.parametrize("path", WITH_TEMPLATE, ids=TEMPLATE_IDS)
def test_images_say_what_they_show(path):
    """A picture without alternative text is nothing to those who cannot see it."""
    for cell in read(path).cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                assert output.metadata["image/png"]["alt"]
        if cell.cell_type == "markdown":
            assert all(re.findall(r"!\[([^\]]*)\]\(", cell.source))
            assert "<img" not in cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_has_the_skeleton_of_a_chapter(path):
    """A reader finds needs, time, cost, exercises and a summary where the last chapter had them."""
    cells = read(path).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    parts = ["<!-- you will:", "| **needs**", "| **time**", "| **cost**", "| **left running**"]
    parts += ["Three questions lead", "## When it goes wrong", "## Clean up"]
    for part in [*parts, "Three things you now know"]:
        assert text.count(part) == 1, part
    for cell in (cells[0], cells[-1]):
        assert cell.source.startswith("<!-- navigation -->")
    assert 2 <= text.count("### Exercise") <= 3
    assert text.count("<summary>Solution</summary>") == text.count("### Exercise")
    assert all(solutions(cell) for cell in cells if "### Exercise" in cell.source)
    first = next(cell for cell in cells if cell.cell_type == "code")
    assert re.search(r"^provider: \w+", first.outputs[0].text, re.M)


@pytest.mark.parametrize("path", WITH_TEMPLATE, ids=TEMPLATE_IDS)
def test_cleaning_up_works_after_a_restart_of_the_kernel(path):
    """The cell needs nothing of the others, ends what they rented, and names the command."""
    code = [cell.source for cell in read(path).cells if cell.cell_type == "code"]
    if "guard.rent(" not in "\n".join(code):
        return
    kept = set(re.findall(r"guard\.rent\([^\"\n]*\"([\w-]+)\"", "\n".join(code)))
    [cell] = [source for source in code if "# Also after a restart of the kernel" in source]
    assert "python -m helpers destroy" in cell
    assert all(f'"{label}"' in cell for label in kept), kept
    names = [node for node in ast.walk(ast.parse(cell)) if isinstance(node, ast.Name)]
    made = {name.id for name in names if isinstance(name.ctx, ast.Store)}
    assert {name.id for name in names} - made <= {"rent", "settings", "print", "len"}


@pytest.mark.parametrize("path", WITH_TEMPLATE, ids=TEMPLATE_IDS)
def test_one_way_to_import_and_one_line_before_it_begins(path):
    """A reader who knows the first cell of one notebook knows it of all."""
    code = [cell.source for cell in read(path).cells if cell.cell_type == "code"]
    assert re.search(r"^from helpers import [a-z, ]+$", code[0], re.M)
    assert re.search(r"^print\(rent\.preflight\(\w+\)\)$", code[0], re.M)
    but_the_last = "\n".join(cell for cell in code if "helpers destroy" not in cell)
    ours = re.findall(r"^from (helpers\S*) import (.+)$", but_the_last, re.M)
    assert [names for module, names in ours if module == "helpers"] == [ours[0][1]]
    assert all(names[0].isupper() for module, names in ours if module != "helpers"), ours
    assert "REHEARSAL" not in "".join(code)


@pytest.mark.parametrize("path", WITH_TEMPLATE, ids=TEMPLATE_IDS)
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


@pytest.mark.parametrize("path", WITH_TEMPLATE, ids=TEMPLATE_IDS)
def test_internal_links_lead_somewhere(path):
    """Links and pictures that are files exist, and headings that are linked to as well."""
    for cell in read(path).cells:
        if cell.cell_type != "markdown":
            continue
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", cell.source):
            if "://" in target:
                continue
            there = path.parent / target if target else path
            assert there.exists(), target
            if anchor:
                assert anchor in headings(there), f"{target}#{anchor}"


def headings(path: Path) -> set[str]:
    """What Jupyter and GitHub call the headings of a notebook or a Markdown file."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {title.replace(" ", "-") for title in titles} | {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles
    }


def test_killed_kernel_leaves_readable_records_and_a_findable_instance(own_rehearsal, tmp_path):
    """kill -9 in the middle of a run: every finished request is on disk, the rental is adopted."""
    file = tmp_path / "run.jsonl"
    script = f"""
        import asyncio
        from helpers import load, rent, serve, settings

        config = settings.read()
        provider = rent.connect(config)
        spec = serve.ServingSpec()
        instance = rent.guard.rent(provider, spec, "mistral", config, progress=print)
        endpoint = rent.ssh.tunnel(instance, config).endpoint(poll_s=0.3)
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
    run = Run.read(file)
    assert len(run.records) > 5
    assert all(record.output_tokens == 8 for record in run.records if record.ok)
    provider = rent.connect(own_rehearsal)
    [left] = provider.instances()
    assert rent.guard.find(provider, "mistral").id == left.id
    again = rent.guard.rent(provider, None, "mistral", own_rehearsal, progress=print)
    assert again.id == left.id
