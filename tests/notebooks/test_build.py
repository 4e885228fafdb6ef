"""What build.py derives from the notebooks is up to date."""

import subprocess
import sys
from pathlib import Path

from helpers.settings import PROJECT


def test_a_second_call_changes_nothing():
    """Navigation, maps and tables of contents are those of today's notebooks."""
    notebooks = sorted((PROJECT / "notebooks").glob("*.ipynb"))
    before = {path: path.read_bytes() for path in [*notebooks, PROJECT / "README.md"]}
    subprocess.run([sys.executable, PROJECT / "notebooks" / "publish" / "build.py"], check=True)
    after = {path: path.read_bytes() for path in before}
    changed = [path.name for path in before if before[path] != after[path]]
    for path, content in before.items():
        Path(path).write_bytes(content)
    assert changed == []


def test_a_reader_finds_notebooks_and_nothing_else():
    """What makes the notebooks and the site lies in a folder of its own."""
    shown = {path.name for path in (PROJECT / "notebooks").iterdir() if path.name[0] not in "._"}
    assert shown == {
        "publish",
        "template.ipynb",
        *(path.name for path in (PROJECT / "notebooks").glob("[0-9][0-9]_*.ipynb")),
    }
