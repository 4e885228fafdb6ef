"""Keep the notebooks one course: run them, and write what can be derived from them.

``python notebooks/publish/build.py [--run] [NN ...]`` writes the navigation and the map
of every notebook, its links to the glossary, the table of notebooks in README.md and
notebook 00, and README's pictures. A second call changes nothing.

``--run`` executes first, all of them or those named, each from a fresh kernel and a
stopped rehearsal. Only a clean execution is kept. It leaves a record in the notebook's
metadata: the date, the seconds, and hashes of its code cells and of the helpers it
uses, so that a test can tell when code has changed after its outputs were made
(fingerprint.py).
"""

import argparse
import os
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from fingerprint import code_cells, fingerprints
from glossary import linked, terms
from pictures import ANY_MAP, chapter_map, put, readme_figure, small_picture

PROJECT = Path(__file__).resolve().parents[2]
FOLDER = PROJECT / "notebooks"
TEMPLATE = FOLDER / "template.ipynb"
GLOSSARY = FOLDER / "glossary.md"
CELL_TIMEOUT_S = 600
FAILURES = (CellExecutionError, CellTimeoutError, DeadKernelError, RuntimeError)


class Refused(Exception):
    """A notebook is not as it has to be."""


def main() -> str | None:
    """Refresh, and with ``--run`` execute; the return value is what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="store_true", help="execute first")
    parser.add_argument("names", nargs="*", help="03 04 template; default: all")
    options = parser.parse_args()
    try:
        if options.run:
            chosen = [
                path for path in [*chapters(), TEMPLATE] if wanted(path, options.names)
            ]
            if not chosen:
                raise Refused(f"no notebook is named {' or '.join(options.names)}")
            for path in chosen:
                run(path)
        refresh()
    except Refused as refusal:
        return str(refusal)
    return None


def chapters() -> list[Path]:
    """The course's notebooks in their order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))


def wanted(path: Path, names: list[str]) -> bool:
    """Is it one of those named on the command line?"""
    return not names or path.stem[:2] in names or path.stem in names


def read(path: Path) -> NotebookNode:
    """A notebook."""
    return nbformat.read(path, as_version=4)


# -- executing -------------------------------------------------------------------------


def run(path: Path) -> None:
    """Execute a notebook from a fresh kernel; keep it if it was clean."""
    from helpers import rehearsal, settings

    os.environ["PROVIDER"] = "rehearsal"  # never with real money, whatever .env says
    rehearsal.stop(settings.read())
    notebook, began = read(path), time.monotonic()
    print(f"{path.name} ...", end=" ", flush=True)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        coalesce_streams=True,
        startup_timeout=180,
        extra_arguments=[
            "--IPKernelApp.log_level=ERROR"
        ],  # loopback needs no encryption
        resources={"metadata": {"path": str(path.parent)}},
    )
    try:
        client.execute()
    except FAILURES as error:
        raise Refused(f"failed, and was left as it was\n{error}") from None
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                words = output.get("text", output.get("evalue"))
                raise Refused(
                    f"wrote to stderr, and was left as it was\n{cell.source}\n{words}"
                )
    if rehearsal.holds_rentals(settings.read()):
        raise Refused("left an instance rented, and was left as it was")
    seconds = round(time.monotonic() - began)
    notebook.metadata["course"] = {
        **fingerprints(notebook),
        "run_on": f"{datetime.now(UTC):%Y-%m-%d}",
        "seconds": seconds,
    }
    write(notebook, path)
    print(f"{seconds} s", flush=True)


def write(notebook: NotebookNode, path: Path) -> None:
    """Write it if it has changed: no metadata but the kernel's name and our record."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day: noise in every diff
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    if "course" in notebook.metadata:
        metadata["course"] = dict(notebook.metadata["course"])
    notebook.metadata = nbformat.from_dict(metadata)
    put(path, nbformat.writes(notebook) + "\n")


# -- what is derived -------------------------------------------------------------------


def refresh() -> None:
    """Navigation, maps, glossary links, contents tables and README's pictures."""
    paths = chapters()
    facts = [Facts(path) for path in paths]
    entries = terms(GLOSSARY.read_text())
    for place, path in enumerate(paths):
        notebook = read(path)
        prose = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
        texts = [derived(cell.source, facts, place) for cell in prose]
        for cell, text in zip(prose, linked(texts, entries), strict=True):
            cell.source = text
        write(notebook, path)
    if TEMPLATE.exists():
        write(read(TEMPLATE), TEMPLATE)
    readme = PROJECT / "README.md"
    facts = [Facts(path) for path in paths]
    text = between_marks(readme.read_text(), contents(facts, pictures=True))
    put(readme, readme_figure(text, {one.number: one.notebook for one in facts}))


def derived(text: str, facts: list["Facts"], place: int) -> str:
    """A markdown cell with what belongs between its marks."""
    if text.startswith("<!-- navigation -->"):
        return f"<!-- navigation -->\n{navigation(facts, place)}"
    if ANY_MAP.search(text):
        here = chapter_map(facts[place].number)
        text = ANY_MAP.sub(lambda _: here, text)
    return between_marks(text, contents(facts, pictures=False))


def navigation(facts: list["Facts"], place: int) -> str:
    """Links to the notebook before, the table of contents in 00, and the one after."""
    first = facts[0].path.name
    parts = []
    if place:
        parts.append(f"[< {facts[place - 1].title}]({facts[place - 1].path.name})")
        parts.append(f"[Contents]({first})")
    if place + 1 < len(facts):
        parts.append(f"[{facts[place + 1].title} >]({facts[place + 1].path.name})")
    return " | ".join(parts)


def between_marks(text: str, table: str) -> str:
    """``text`` with its table of contents, if it has a place for one, written anew."""
    marks = r"(?s)(<!-- contents -->\n).*(<!-- end of contents -->)"
    return re.sub(marks, lambda found: f"{found[1]}{table}\n{found[2]}", text)


class Facts:
    """What a notebook says of itself at its beginning.

    Raises:
        Refused: when one of the marks is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.number, self.notebook = path, path.name[:2], read(path)
        text = "\n".join(cell.source for cell in self.notebook.cells[:4])
        self.title = self._find(r"^# (.+)$", text, "heading")
        self.goal = self._find(
            r"^<!-- you will: (.+) -->$", text, "<!-- you will: ... -->"
        )
        self.time = self._find(r"^\| \*\*time\*\* \| ([^|]+?) \|", text, "row **time**")
        self.needs = self._find(
            r"^\| \*\*needs\*\* \|[^|]+\| ([^|]+?) \|$",
            text,
            "row **needs** with two columns",
        )

    def _find(self, pattern: str, text: str, what: str) -> str:
        if found := re.search(pattern, text, re.M):
            return found[1]
        raise Refused(f"{self.path.name}: its first four cells hold no {what}")


def contents(facts: list[Facts], pictures: bool) -> str:
    """The table of notebooks, for the README (with pictures) or for notebook 00."""
    row = pictured if pictures else plain
    head = ["| | notebook |", "|---|---|"]
    if not pictures:
        head = ["| notebook | you will |", "|---|---|"]
    return "\n".join([*head, *map(row, facts)])


def plain(one: Facts) -> str:
    """A notebook's row in notebook 00."""
    return f"| [{one.title}]({one.path.name}) | {one.goal} |"


def pictured(one: Facts) -> str:
    """A notebook's row in the README: two columns, so that pictures can be made out."""
    picture = small_picture(one.number, one.notebook)
    link = f"[**{one.title}**](notebooks/{one.path.name})<br>{one.goal}"
    needs = f"*{one.time}; on a real account {one.needs}*"
    return f"| {picture} | {link}<br>{needs} |"


if __name__ == "__main__":
    sys.exit(main())
