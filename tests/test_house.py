"""The house: small rooms, no circle between them, and little to load for what needs little."""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from helpers.settings import PROJECT

HELPERS = PROJECT / "helpers"
FILES = sorted(HELPERS.rglob("*.py"))
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
LAYOUT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
}  # fmt: skip


def code_lines(path: Path) -> int:
    """Lines of code: no blank ones, no comments, no docstrings."""
    source = path.read_text()
    words = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            words |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    code = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - words)


def module(path: Path) -> str:
    """Its dotted name."""
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module(path): path for path in FILES}


def imported(path: Path) -> set[str]:
    """Modules of ours that it imports, wherever in the file (but not for types alone)."""
    tree, found = ast.parse(path.read_text()), set()
    typing = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in NAMES else node.module for name in whole}
    return found & NAMES.keys()


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Every way that leads back to where it began, one for each circle's first name."""

    def back(start: str, at: str, way: list[str], seen: set[str]) -> list[str]:
        for name in sorted(arrows[at]):
            if name == start:
                return [*way, name]
            if name not in seen:
                seen.add(name)
                if found := back(start, name, [*way, name], seen):
                    return found
        return []

    return [way for start in sorted(arrows) if (way := back(start, start, [start], set()))]


def test_it_stays_small():
    """8,962 lines of code once. To be 7,800: 500 for right numbers, 800 for door and prices."""
    assert sum(map(code_lines, FILES)) <= 7_800
    assert sum(map(code_lines, (HELPERS / "rehearsal").glob("*.py"))) <= 1700


@pytest.mark.parametrize("path", FILES, ids=module)
def test_one_thing_a_file(path):
    """At most 300 lines a file and 60 a function."""
    tree = ast.parse(path.read_text())
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [n.name for n in functions if n.end_lineno - n.lineno + 1 > 60]
    assert (len(path.read_text().splitlines()) <= 300, long) == (True, [])


def test_a_folder_for_each_stage():
    """The top holds what every stage needs, and no more."""
    assert len(list(HELPERS.glob("*.py"))) <= 10


def test_no_circle():
    """Neither between files nor between folders."""
    files = {name: imported(path) for name, path in NAMES.items()}
    assert circles(files) == []

    def room(name: str) -> str:
        path = NAMES[name]
        return module(path if path.parent == HELPERS else path.parent)

    rooms: dict[str, set[str]] = {}
    for name, others in files.items():
        arrows = {room(other) for other in others} - {room(name)}
        rooms.setdefault(room(name), set()).update(arrows)
    assert circles(rooms) == []


def test_the_circle_test_finds_circles():
    """Else the one above proves nothing."""
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c", "b"], ["c", "b", "c"]]


@pytest.mark.parametrize(
    ("start", "absent"),
    [
        ("helpers.load", {"helpers.rent", "helpers.rehearsal", "pandas", "matplotlib"}),
        ("helpers.measure", {"helpers.rent", "helpers.rehearsal", "helpers.load"}),
        ("helpers.tools", {"helpers.rent", "helpers.rehearsal"}),
        ("helpers.rent", {"helpers.load", "helpers.measure", "helpers.plots"}),
        ("helpers.load.client", {"helpers.rehearsal"}),
    ],
)
def test_nothing_is_loaded_that_is_not_needed(start, absent):
    """What measures knows nothing of renting, and what rents nothing of tokens."""
    code = f"import sys, {start}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert absent & set(done.stdout.split()) == set()


@pytest.mark.parametrize("path", FILES, ids=module)
def test_readme_says_where_everything_is(path):
    """Its layout has a line for each folder, and each line names all files of that folder."""
    folder = path.parent.relative_to(PROJECT).as_posix()
    lines = (PROJECT / "README.md").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"| `{folder}/` |")]
    assert path.stem == "__init__" or f"`{path.stem}`" in line or path.stem[0] == "_"
