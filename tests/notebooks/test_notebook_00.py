"""Notebook 00 without a network: its cells, and the folded solutions of its exercises."""

import re
from pathlib import Path

import gpuhunt.providers.vastai
import nbformat
import pytest

PATH = Path(__file__).resolve().parents[2] / "notebooks" / "00_what_do_we_need.ipynb"


@pytest.fixture(scope="module")
def notebook():
    """The notebook as it is committed."""
    return nbformat.read(PATH, as_version=4)


def test_cells_and_solutions_run_with_the_network_refused(notebook, monkeypatch, capsys):
    """A reader on a train gets every table, and is told that the prices are old."""
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setenv("GPUHUNT_CATALOG_URL", nowhere)
    monkeypatch.setattr(gpuhunt.providers.vastai, "bundles_url", nowhere)
    monkeypatch.chdir(PATH.parent)
    names: dict = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
    solutions = [
        code
        for cell in notebook.cells
        for code in re.findall(r"(?s)~~~python\n(.*?)~~~", cell.source)
    ]
    assert len(solutions) >= 2
    for code in solutions:
        exec(code, names)
    said = capsys.readouterr().out
    assert said.count("OLD") == 4 and "a T4 cannot hold Mistral 7B in FP16" in said
    assert said.count("Notice:") >= 4
