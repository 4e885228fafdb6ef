"""What a reader does with a notebook beside reading it: copies its cells, tries its solutions."""

import ast
import contextlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat

MARKED = re.compile(r"# Works anywhere\.(?: Needs: ([a-z_]+(?:, [a-z_]+)*))?\n")
SOLUTION = re.compile(r"<summary>Solution</summary>(.*?)</details>", re.S)
CODE = re.compile(r"^~~~python\n(.*?)^~~~$", re.S | re.M)
FAILED = re.compile(r"^Traceback|^\w+(Error|Exception)\b|Warning: ", re.M)


def needs(source: str) -> list[str] | None:
    """The names that a cell says it needs; None for a cell that is not marked to be copied."""
    found = MARKED.match(source)
    return found and re.findall(r"\w+", found[1] or "")


def solutions(cell) -> list[str]:
    """The code of the solutions in a markdown cell."""
    if cell.cell_type != "markdown":
        return []
    return [code for folded in SOLUTION.findall(cell.source) for code in CODE.findall(folded)]


TESTS = str(Path(__file__).resolve().parents[1])


def with_everything_tried(notebook):
    """The notebook, where each solution is run after it, and each marked cell pasted before it."""
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code" and (names := needs(cell.source)) is not None:
            given = ", ".join(f"{name!r}: {name}" for name in names)
            cells.append(
                nbformat.v4.new_code_cell(
                    f"__import__('sys').path.insert(0, {TESTS!r})\n"
                    f"__import__('support.pasting').pasting.paste({cell.source!r}, {{{given}}})"
                )
            )
        cells.append(cell)
        cells += [nbformat.v4.new_code_cell(code) for code in solutions(cell)]
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)


def paste(source: str, names: dict[str, object]) -> None:
    """Type a cell into an interactive Python, line by line, where only ``names`` are known.

    Args:
        source: the cell; if it awaits something it goes into ``python -m asyncio``.
        names: what the reader has.

    Raises:
        AssertionError: with what Python said, when it complained.
    """
    lines = [line for name, value in names.items() for line in definition(name, value)]
    try:
        compile(source, "cell", "exec")
        session = ["-i", "-q"]
    except SyntaxError:
        session = ["-m", "asyncio"]
    done = subprocess.run(
        [sys.executable, *session],
        input="\n".join([*lines, source, "", "print('typed', 'to the end')\n"]),
        cwd=tempfile.gettempdir(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = done.stdout + done.stderr
    assert "typed to the end" in said and not FAILED.search(said.replace(">>> ", "")), said


def definition(name: str, value: object) -> list[str]:
    """The lines that a reader would type to have what the marker calls ``name``."""
    kind = type(value).__name__
    if kind == "VastAI":
        key, url = value.client.api_key, value.client.server_url
        return ["from vastai import VastAI", f"{name} = VastAI({key!r}, server_url={url!r})"]
    if kind == "OpenAI":
        made = f"{name} = OpenAI(base_url={str(value.base_url)!r}, api_key='none')"
        return ["from openai import OpenAI", made]
    if kind == "Endpoint":
        made = f"{name} = Endpoint(base_url={value.base_url!r}, model={value.model!r})"
        return ["from helpers.endpoint import Endpoint", made]
    with contextlib.suppress(ValueError, SyntaxError):
        if ast.literal_eval(repr(value)) == value:
            return [f"{name} = {value!r}"]
    raise AssertionError(f"{name}: how a reader makes a {kind} is not known here")
