"""What a notebook's outputs depend on, as hashes: its code, and the helpers it uses.

Comments, docstrings and layout of the helpers are left out, so that wording makes no
output old.
"""

import ast
import hashlib
import re
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

from nbformat import NotebookNode

PROJECT = Path(__file__).resolve().parents[2]
PACKAGE = "helpers"
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Its code cells."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def fingerprints(notebook: NotebookNode, root: Path = PROJECT) -> dict[str, str]:
    """SHA-256 of the code cells (``code_sha256``) and helpers (``helpers_sha256``)."""
    sources = [cell.source for cell in code_cells(notebook)]
    trees = helpers_of("\n".join(sources), root)
    parts = [f"{name}\0{meaning(tree)}" for name, tree in sorted(trees.items())]
    return {"code_sha256": _sha256(sources), "helpers_sha256": _sha256(parts)}


def helpers_of(code: str, root: Path = PROJECT) -> dict[str, ast.Module]:
    """The modules of ``helpers`` that code imports or starts, and those they do."""
    found: dict[str, ast.Module] = {}
    waiting = list(_mentioned(ast.parse(code), ""))
    while waiting:
        name = waiting.pop()
        file = root.joinpath(*name.split("."))
        is_package = file.is_dir()
        file = file / "__init__.py" if is_package else file.with_suffix(".py")
        if name not in found and file.is_file():
            found[name] = without_docstrings(ast.parse(file.read_text()))
            within = name if is_package else name.rpartition(".")[0]
            waiting += [within, *_mentioned(found[name], within)]
    return found


def _mentioned(tree: ast.AST, package: str) -> Iterator[str]:
    """Names of ours that a tree imports, or starts with ``python -m`` in some text."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = re.findall(rf"\b{PACKAGE}(?:\.\w+)+", node.value)
        yield from (name for name in names if name.split(".")[0] == PACKAGE)


def without_docstrings(tree: ast.Module) -> ast.Module:
    """The same tree, changed in place."""
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            del node.body[0]
    return tree


def meaning(node: object) -> str:
    """A syntax tree as text, without what is empty.

    ``ast.dump`` would differ between versions of Python, which add fields.
    """
    if isinstance(node, list):
        return f"[{' '.join(map(meaning, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [pair for pair in ast.iter_fields(node) if pair[1] not in (None, [])]
    said = " ".join(f"{name}={meaning(value)}" for name, value in fields)
    return f"{type(node).__name__}({said})"


def _sha256(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
