"""The glossary: what it explains, and links from each notebook's prose to it.

``glossary.md`` is written by hand, one ``### Term`` after the other::

    ### KV cache

    Also: key-value cache.

    The memory in which the server keeps what it has read.

    First explained in [00 - What do we need?](00_what_do_we_need.ipynb).

A capital at the beginning and an "s" at the end are understood by themselves.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).resolve().parents[1] / "glossary.md"
LINK = re.compile(r"\[([^\[\]]+)\]\(glossary\.md#[^)]+\)")

# What is no prose, in the order in which it is looked for.
NOT_PROSE = r"""
    <!--\ contents\ -->.*?<!--\ end\ of\ contents\ -->  | <!--\ navigation\ -->.*
    | <!--.*?-->  | ^\#+\ [^\n]*  | ^\|[ ]*\|\ rehearsal\ .*?(?=\n\n|\Z)
    | ^[ ]*(?P<fence>```+|~~~+).*?^[ ]*(?P=fence)[ ]*$  | (?P<ticks>`+).+?(?P=ticks)
    | <summary>.*?</summary>  | </?\w[^>]*>  | <https?:[^>]*>  | https?://[^\s)>]+
    | !?\[(?:[^\[\]]|\[[^\]]*\])*\]\([^)]*\)
"""


@dataclass(frozen=True)
class Term:
    """An entry of the glossary."""

    name: str
    spellings: tuple[str, ...]  # of prose, its name among them
    text: str
    notebook: str  # the file that explains it

    @property
    def anchor(self) -> str:
        """What GitHub, Jupyter and Sphinx call its heading."""
        return re.sub(r"[^\w -]", "", self.name.lower()).replace(" ", "-")


def terms(text: str) -> list[Term]:
    """The entries of ``glossary.md``, in its order."""
    found = []
    for name, body in re.findall(r"(?ms)^### (.+?)$(.*?)(?=^#|\Z)", text):
        also = re.search(r"^Also: (.+)\.$", body, re.M)
        first = re.search(r"^First explained in \[[^\]]+\]\((.+?)\)\.$", body, re.M)
        if not first:
            raise ValueError(f"glossary.md: {name} does not say where it is explained")
        spellings = [name, *(also[1].split(", ") if also else [])]
        said = body[also.end() if also else 0 : first.start()].strip()
        found.append(Term(name, tuple(spellings), said, first[1]))
    return found


class Finder:
    """Finds terms in prose: whole words, and of two that begin together the longer."""

    def __init__(self, entries: list[Term]) -> None:
        self.names = {key(one): term for term in entries for one in term.spellings}
        words = "|".join(map(spelt, sorted(self.names, key=len, reverse=True)))
        self.pattern = re.compile(
            rf"(?P<code>\*\*`(?:{words})`\*\*) | {NOT_PROSE}"
            r"| (?<![\w-]) (?P<bold>\*\*)?"
            rf"(?P<word>(?:{words})s?) (?(bold)\*\*) (?![\w-])",
            re.X | re.S | re.M,
        )

    def term(self, match: re.Match) -> Term | None:
        """The term that a match is; None where it is code, a link, a heading..."""
        if not (word := match["word"] or (match["code"] or "").strip("*`")):
            return None
        word = key(" ".join(word.split()))
        return self.names.get(word) or self.names[word.removesuffix("s")]

    def uses(self, text: str) -> Iterator[tuple[Term, re.Match]]:
        """Each use of a term in a markdown cell without links to the glossary."""
        for match in self.pattern.finditer(text) if self.names else ():
            if term := self.term(match):
                yield term, match


def key(word: str) -> str:
    """A word as it stands within a sentence."""
    return word[0].lower() + word[1:]


def spelt(word: str) -> str:
    """A pattern for it, also at the beginning of a sentence or across lines."""
    rest = re.escape(word[1:]).replace(r"\ ", r"(?:\ |\n\ *)")
    return f"[{re.escape(word[0])}{re.escape(word[0].upper())}]{rest}"


def unlinked(text: str) -> str:
    """The text without its links to the glossary."""
    return LINK.sub(r"\1", text)


def linked(cells: list[str], entries: list[Term]) -> list[str]:
    """A notebook's markdown cells, each term's first use leading to the glossary."""
    finder, seen = Finder(entries), set()
    done = []
    for text in map(unlinked, cells):
        parts, end = [], 0
        for term, match in finder.uses(text):
            if term not in seen:
                seen.add(term)
                link = f"[{match[0]}](glossary.md#{term.anchor})"
                parts += [text[end : match.start()], link]
                end = match.end()
        done.append("".join([*parts, text[end:]]))
    return done
