"""Make the reading site: ``python notebooks/publish/website.py [FOLDER]``.

It takes seconds and no network. The first page is README.md, then come the notebooks
with their committed outputs, and at last the API. They go to FOLDER/html, by default
``notebooks/_build/html``.
"""

import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import main as sphinx_build

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]


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
    for page in [*chapters, *HERE.glob("*.md")]:
        shutil.copy2(page, source)  # with its date: what is unchanged is not built anew
    shutil.copy2(PROJECT / "README.md", folder)
    pictures.unlink(missing_ok=True)
    pictures.symlink_to(PROJECT / "assets")
    return source


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
