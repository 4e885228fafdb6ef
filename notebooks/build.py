"""Keep the notebooks whole: ``python notebooks/build.py [--run] [NN ...]``.

Writes the navigation into every notebook and the table of them into the README; with
``--run`` executes them first, each from a fresh kernel. Without it nothing changes on a
second call.
"""

import argparse
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
CELL_TIMEOUT_S = 600


def main() -> None:
    """Refresh, and with ``--run`` execute, the chosen notebooks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="store_true", help="execute first")
    parser.add_argument("numbers", nargs="*", help="such as 03 04; all by default")
    options = parser.parse_args()
    everything = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
    for path in everything:
        if options.numbers and path.name[:2] not in options.numbers:
            continue
        notebook = nbformat.read(path, as_version=4)
        if options.run:
            print(f"running {path.name}", flush=True)
            execute(notebook, path)
        refresh(notebook, path, everything)
        nbformat.write(notebook, path)
    contents(everything)


def execute(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Run every cell in a fresh kernel; what fails stops here, with the cell shown."""
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()


def refresh(notebook, path: Path, everything: list[Path]) -> None:
    """Navigation, and no metadata but the kernel's name."""
    mark = "<!-- navigation -->"
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day: noise in every diff
        if cell.cell_type == "markdown" and cell.source.startswith(mark):
            cell.source = f"{mark}\n{navigation(path, everything)}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": kernel, "language_info": {"name": "python"}}
    )


def navigation(path: Path, everything: list[Path]) -> str:
    """Links to the notebook before, the table of contents, and the one after."""
    place = everything.index(path)
    before = everything[place - 1] if place else None
    after = everything[place + 1] if place + 1 < len(everything) else None
    parts = [f"[< {title(before)}]({before.name})"] if before else []
    parts.append("[Contents](../README.md)")
    parts += [f"[{title(after)} >]({after.name})"] if after else []
    return " | ".join(parts)


def contents(everything: list[Path]) -> None:
    """The README's table of notebooks, from each one's goal and its table of facts."""
    readme = FOLDER.parent / "README.md"
    rows = ["| notebook | you will | time | real account |", "|---|---|---|---|"]
    for path in everything:
        text = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells[:4])
        fact = {
            name: cells.strip(" |").split(" | ")
            for name, cells in re.findall(r"^\| \*\*(\w+)\*\*(.*)$", text, re.M)
        }
        goal = re.search(r"^<!-- you will: (.+) -->$", text, re.M)[1]
        link = f"[{title(path)}](notebooks/{path.name})"
        rows.append(f"| {link} | {goal} | {fact['time'][0]} | {fact['needs'][1]} |")
    table = "\n".join(rows)
    between = r"(?s)(<!-- contents -->\n).*(<!-- end of contents -->)"
    text = re.sub(between, lambda m: f"{m[1]}{table}\n{m[2]}", readme.read_text())
    readme.write_text(text)


def title(path: Path) -> str:
    """The notebook's heading."""
    for cell in nbformat.read(path, as_version=4).cells:
        if found := re.search(r"^# (.+)$", cell.source, re.M):
            return found[1]
    raise ValueError(f"{path.name} has no heading")


if __name__ == "__main__":
    sys.exit(main())
