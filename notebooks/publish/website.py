"""Make the reading site: ``python notebooks/publish/website.py [FOLDER]``.

It takes seconds and no network. The first page is README.md, then come the notebooks
with their committed outputs, the glossary, and at last the API. They go to FOLDER/html,
by default ``notebooks/_build/html``.
"""

import importlib
import shutil
import sys
from pathlib import Path
from types import ModuleType

from sphinx.cmd.build import main as sphinx_build

from pictures import put

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
ROOMS = (
    "choose", "rent", "serve", "load", "measure", "tools", "plots",
    "settings", "endpoint", "errors", "progress",
)  # fmt: skip


def main(folder: str | Path = PROJECT / "notebooks" / "_build") -> int:
    """Build the site; a warning is an error. Returns Sphinx's exit status."""
    folder = Path(folder).resolve()
    options = ["-q", "-W", "--keep-going", "-c", str(HERE)]
    return sphinx_build([*options, str(gather(folder)), str(folder / "html")])


def gather(folder: Path) -> Path:
    """Copy all pages into FOLDER/notebooks: Sphinx wants them in one place.

    What lies around that place repeats the layout of the project, so that relative
    paths stay true.
    """
    source, pictures = folder / "notebooks", folder / "assets"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    chapters = (PROJECT / "notebooks").glob("[0-9][0-9]_*.ipynb")
    for page in [*chapters, PROJECT / "notebooks" / "glossary.md", HERE / "index.md"]:
        shutil.copy2(page, source)  # with its date: what is unchanged is not built anew
    put(source / "api.md", api())
    shutil.copy2(PROJECT / "README.md", folder)
    pictures.unlink(missing_ok=True)
    pictures.symlink_to(PROJECT / "assets")
    return source


def api() -> str:
    """The page of the API: the public names of each room of ``helpers``."""
    lines = ["# The helpers", "", "What the notebooks import, by stages of the course."]
    for name in [f"helpers.{room}" for room in ROOMS]:
        face = importlib.import_module(name)
        lines += documented(name, "##")
        for public in getattr(face, "__all__", []):
            if isinstance(getattr(face, public), ModuleType):
                lines += documented(f"{name}.{public}", "###")
    return "\n".join(lines) + "\n"


def documented(module: str, heading: str) -> list[str]:
    """Lines that let Sphinx write what a module's docstrings say."""
    directive = ["```{eval-rst}", f".. automodule:: {module}", "   :members:", "```"]
    return ["", f"{heading} {module}", "", *directive]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
