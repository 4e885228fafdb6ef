"""What build.py derives from the notebooks is up to date."""

import base64
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import build
import nbformat
import pictures
from PIL import Image

from helpers.settings import PROJECT


def test_a_second_call_changes_nothing():
    """Navigation, maps, glossary links, contents and pictures are those of today's notebooks."""
    made = [*(PROJECT / "notebooks").glob("*.ipynb"), PROJECT / "README.md"]
    for pictures_of in ("*.png", "maps/*", "thumbnails/*"):
        made += (PROJECT / "assets").glob(pictures_of)
    before = {path: path.read_bytes() for path in sorted(made)}
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
        "glossary.md",
        "template.ipynb",
        *(path.name for path in (PROJECT / "notebooks").glob("[0-9][0-9]_*.ipynb")),
    }


def test_readme_figure_is_that_of_its_notebook(tmp_path, monkeypatch):
    """The tag "readme" wins over "thumbnail", and the words beside it are the figure's own."""
    monkeypatch.setattr(pictures, "ASSETS", tmp_path)
    files = sorted((PROJECT / "assets").glob("thumbnails/*.png"))[:2]
    cells = []
    for tag, file in zip(("thumbnail", "readme"), files, strict=True):
        output = nbformat.v4.new_output(
            "display_data",
            {"image/png": base64.b64encode(file.read_bytes()).decode()},
            metadata={"image/png": {"alt": f"the [{tag}]"}},
        )
        cell = nbformat.v4.new_code_cell(outputs=[output], metadata={"tags": [tag]})
        cells.append(cell)
    notebook = nbformat.v4.new_notebook(cells=cells)
    text = pictures.readme_figure("![old](assets/throughput.png)", {"04": notebook})
    assert text == "![the  readme ](assets/throughput.png)"
    image = Image.open(tmp_path / "throughput.png")
    assert image.size == Image.open(files[1]).size
    assert pictures.small_picture("04", notebook) == "![the  thumbnail ](assets/thumbnails/04.png)"


def test_readme_figure_and_thumbnail_come_from_the_committed_run():
    """Their notes name the figures of 04 that they were made from."""
    shown = pictures.figures(build.read(next((PROJECT / "notebooks").glob("04_*.ipynb"))))
    for file, tags, width in (
        ("throughput.png", ["readme", "thumbnail"], None),
        ("thumbnails/04.png", ["thumbnail"], pictures.THUMBNAIL_WIDTH),
    ):
        _, figure = pictures.first_tagged(shown, *tags)
        source = hashlib.sha256(figure + str(width).encode()).hexdigest()
        assert Image.open(PROJECT / "assets" / file).text["source"] == source


def test_every_small_picture_is_used():
    """What a notebook showed before it was rewritten is gone."""
    for folder, text in (
        ("thumbnails", (PROJECT / "README.md").read_text()),
        ("maps", "".join(path.read_text() for path in build.chapters())),
    ):
        files = {path.name for path in (PROJECT / "assets" / folder).iterdir()}
        assert files == set(re.findall(rf"assets/{folder}/([\w.]+)", text))


def test_each_notebook_has_its_row():
    """In the README and in notebook 00, between its neighbours."""
    for file in ("README.md", "notebooks/00_what_do_we_need.ipynb"):
        text = (PROJECT / file).read_text()
        table = text[text.index("<!-- contents -->") : text.index("<!-- end of contents -->")]
        rows = re.findall(r"(\d\d) - ", table)
        numbers = {path.name[:2] for path in build.chapters()}
        assert rows == sorted(numbers)
