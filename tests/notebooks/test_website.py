"""The reading site: built as README says, offline, without a warning, with every link whole."""

import importlib
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from website import ROOMS

from helpers.settings import PROJECT

CHAPTERS = sorted(path.stem for path in (PROJECT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
PAGES = ["index", *CHAPTERS, "glossary", "api"]


@pytest.fixture(scope="module")
def pages(site):
    """Each page, parsed."""
    return {path: BeautifulSoup(path.read_text(), "lxml") for path in site.glob("*.html")}


def test_every_notebook_has_its_page(site):
    """No chapter is left out, and the template stays at home."""
    assert {f"{name}.html" for name in PAGES} <= {path.name for path in site.glob("*.html")}
    assert not (site / "template.html").exists()


def test_every_picture_is_there_and_has_alternative_text(site, pages):
    """Figures of cells and drawings alike."""
    for name in ["index", *CHAPTERS]:
        pictures = pages[site / f"{name}.html"].select("article img")
        assert pictures
        for picture in pictures:
            assert len(picture.get("alt", "")) > 20, (name, picture)
            assert (site / unquote(picture["src"])).is_file(), picture["src"]


@pytest.mark.parametrize("room", ROOMS)
def test_the_api_page_describes_every_public_name(site, pages, room):
    """A name that a room exports has its place there, and a description."""
    page, module = pages[site / "api.html"], importlib.import_module(f"helpers.{room}")
    for public in getattr(module, "__all__", []):
        if isinstance(getattr(module, public), str | tuple | dict):
            continue  # a constant: its name says it
        name = f"helpers.{room}.{public}"
        assert page.find(id=[name, f"module-{name}"]), f"{name} has no docstring"


def test_no_output_is_empty(site, pages):
    """A progress line that was taken back leaves no grey box."""
    for name in CHAPTERS:
        shown = pages[site / f"{name}.html"].select("div.cell_output pre")
        assert shown and all(tag.text.strip() for tag in shown), name


def test_links_and_anchors_lead_somewhere(site, pages):
    """Every internal link of every page."""
    anchors = {path: {tag["id"] for tag in page.select("[id]")} for path, page in pages.items()}
    for path, page in pages.items():
        for link in page.select("a[href]"):
            parts = urlsplit(link["href"])
            if parts.scheme or parts.netloc:
                continue
            target = path if not parts.path else Path(path.parent, unquote(parts.path))
            assert target.is_file(), (path.name, link["href"])
            if parts.fragment and target in anchors:
                assert unquote(parts.fragment) in anchors[target], (path.name, link["href"])


def test_nothing_is_fetched_from_elsewhere(pages):
    """It reads the same on a train."""
    for path, page in pages.items():
        for tag in page.select("script[src], link[rel=stylesheet], img[src]"):
            where = tag.get("src") or tag.get("href")
            assert not urlsplit(where).netloc, (path.name, where)


def test_pages_follow_each_other(site, pages):
    """The theme's "next" leads from the first page through all notebooks."""
    here, seen = site / "index.html", ["index"]
    while link := pages[here].select_one("a.right-next"):
        here = site / link["href"]
        seen.append(here.stem)
    assert seen == PAGES


def test_a_notebook_can_be_downloaded_and_neighbours_are_named_once(site, pages):
    """The file is the committed one; the links between notebooks are the theme's alone."""
    for name in CHAPTERS:
        page = pages[site / f"{name}.html"]
        [link] = page.select("article a.download[href$='.ipynb']")
        committed = PROJECT / "notebooks" / f"{name}.ipynb"
        assert (site / unquote(link["href"])).read_bytes() == committed.read_bytes()
        assert len(page.select("a.right-next")) == len(page.select("a.left-prev")) == 1
        assert not [a for a in page.select("article a") if a.text.startswith("< ")]


def test_terms_lead_to_the_glossary(site, pages):
    """From every notebook."""
    for name in CHAPTERS:
        assert pages[site / f"{name}.html"].select("article a[href^='glossary.html#']"), name


def test_search_index_knows_the_words_of_the_course(site):
    """Full text: prose and code."""
    index = (site / "searchindex.js").read_text()
    for word in ("goodput", "tunnel", "rooflin"):
        assert word in index, word


def test_code_can_be_copied_and_solutions_are_folded(site, pages):
    """A copy button's script on each page, and every solution inside its fold."""
    for name in CHAPTERS:
        page = pages[site / f"{name}.html"]
        assert any("copybutton" in tag["src"] for tag in page.select("script[src]"))
        solutions = [tag for tag in page.select("summary") if tag.text == "Solution"]
        assert len(solutions) >= 2
        for tag in solutions:
            assert tag.parent.name == "details" and not tag.parent.has_attr("open")
            assert tag.parent.select("pre")
