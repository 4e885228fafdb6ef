"""The glossary: every term is explained before it is used, and linked from its first use."""

import nbformat
import pytest
from glossary import FILE, Finder, key, linked, terms, unlinked

from helpers.settings import PROJECT

NOTEBOOKS = {path.name: path for path in sorted((PROJECT / "notebooks").glob("[0-9][0-9]_*.ipynb"))}
TERMS = terms(FILE.read_text())


def markdown(path) -> list[str]:
    """The markdown cells of a notebook, without links to the glossary."""
    cells = nbformat.read(path, as_version=4).cells
    return [unlinked(cell.source) for cell in cells if cell.cell_type == "markdown"]


def complaints(course: dict[str, list[str]], entries: list) -> list[str]:
    """What is wrong with first uses, by the names of notebooks in their order."""
    finder, seen, found = Finder(entries), set(), []
    for name, cells in course.items():
        for text in cells:
            for term, match in finder.uses(text):
                if term in seen:
                    continue
                seen.add(term)
                line = text[: match.end()].rpartition("\n\n")[2]
                if name != term.notebook:
                    found.append(f"{name} uses {term.name!r} first, not {term.notebook}: {line}")
                elif not match["code"] and not match["bold"] and line.count("**") % 2 == 0:
                    found.append(f"{name}: first {term.name!r} is not bold: {line}")
    return found


def test_no_term_is_used_before_it_is_explained():
    """And where it is explained it stands in bold: a reader never meets a word unprepared."""
    found = complaints({name: markdown(path) for name, path in NOTEBOOKS.items()}, TERMS)
    assert found == [], "\n" + "\n".join(found)


def test_every_term_has_its_entry():
    """In the order of the alphabet, with a text, and no spelling stands in two entries."""
    names = [term.name for term in TERMS]
    assert len(names) > 60 and names == sorted(names, key=str.lower)
    spellings = [key(one) for term in TERMS for one in term.spellings]
    assert [one for one in spellings if spellings.count(one) > 1] == []
    assert all(term.text and term.notebook in NOTEBOOKS for term in TERMS)


ENTRY = """
### {name}

Also: {also}.

What it is.

First explained in [{file} - title]({file}.ipynb).
"""
MADE_UP = terms(
    ENTRY.format(name="Token", also="word piece", file="00")
    + ENTRY.format(name="Time to first token", also="TTFT", file="01")
    + ENTRY.format(name="known_hosts", also="file of hosts", file="01")
)
LONG = "A **time to first\ntoken**, a second TTFT, tokens, more Tokens, **`known_hosts`**."
LINKED = (
    "A [**time to first\ntoken**](glossary.md#time-to-first-token), a second TTFT,"
    " [tokens](glossary.md#token), more Tokens, [**`known_hosts`**](glossary.md#known_hosts)."
)
NO_PROSE = [
    "## A token", "`token`", "<!-- token -->", "[a token](x.md)", "![a token](x.svg)",
    "<summary>Token</summary>", "~~~python\ntoken\n~~~", "```\ntoken\n```", "token-wise", "atoken",
    "<!-- navigation -->\ntoken", "| | rehearsal | yours |\n|---|---|---|\n| token | | |",
    "<!-- contents -->\n| token |\n<!-- end of contents -->", "https://token.example/token",
]  # fmt: skip


def test_first_uses_are_linked_and_a_second_call_changes_nothing():
    """The longest term wins, the bold text is inside the link, old links are set anew."""
    once = linked([LONG, "A token."], MADE_UP)
    assert once == [LINKED, "A token."]
    assert linked(once, MADE_UP) == once
    assert linked(["First a token.", *once], MADE_UP)[:2] == [
        "First a [token](glossary.md#token).",
        LINKED.replace("[tokens](glossary.md#token)", "tokens"),
    ]
    assert linked(once, []) == [LONG, "A token."]


@pytest.mark.parametrize("text", NO_PROSE)
def test_what_is_no_prose_is_not_touched(text):
    """Neither linked nor counted as a use; the prose after it is."""
    assert linked([text], MADE_UP) == [text]
    assert complaints({"01.ipynb": [text]}, MADE_UP) == []


def test_a_term_used_too_early_is_noticed():
    """Else the test above would hold for every course."""
    right = {"00.ipynb": ["A **token**."], "01.ipynb": ["One **TTFT**. TTFT of a token."]}
    assert complaints(right, MADE_UP) == []
    [early] = complaints({**right, "00.ipynb": ["A **token** has a TTFT."]}, MADE_UP)
    assert "00.ipynb uses 'Time to first token' first" in early
    [plain] = complaints({**right, "00.ipynb": ["**Not**: a token. **Later.**"]}, MADE_UP)
    assert "is not bold" in plain
