"""BibTeX entries of the methods and benchmarks that runs used, from their cards."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from corrigenda.benchmarks.benchmark import BENCHMARKS
from corrigenda.methods.registry import METHODS
from corrigenda.run.store import Recorded

_YEAR = re.compile(r"\b(19|20)\d\d\b")
# A work, and a note in brackets after it.
_NOTE = re.compile(r"(?P<work>.*?)(?: \((?P<note>[^()]*)\))?")
# Characters that mean something to BibTeX, in plain text.
_SPECIAL = re.compile(r"([&%$#_{}])")


class Citation(NamedTuple):
    """Work to cite.

    Attributes:
        key: BibTeX key.
        about: The methods and benchmarks it describes.
        text: Authors, title, venue and year, as the card has them.
        url: Its address; empty where the card has none.
        note: What of the work is meant, such as a baseline or a data set.
    """

    key: str
    about: str
    text: str
    url: str
    note: str = ""

    @property
    def bibtex(self) -> str:
        """BibTeX entry of the work."""
        authors, _, rest = self.text.partition(": ")
        title, _, venue = rest.rpartition(", ")
        year = _YEAR.search(venue)
        names = [name.strip() for name in authors.removesuffix(" et al.").split(", ")]
        if authors.endswith(" et al."):
            names.append("others")
        fields = {
            "author": " and ".join(names),
            "title": title or rest,
            "howpublished": "" if year and venue == year.group() else venue,
            "year": year.group() if year else "",
            # Otherwise which variant of a method ran.
            "note": self.note or (self.about if "(" in self.about else ""),
            "url": self.url,
        }
        lines = [
            f"  {name} = {{{value if name == 'url' else _escape(value)}}},"
            for name, value in fields.items()
            if value
        ]
        return "\n".join([f"@misc{{{self.key},", *lines, "}"])


def collect_citations(runs: Sequence[Recorded]) -> tuple[Citation, ...]:
    """Collect the works on the runs' methods and benchmarks, each once, and this library."""
    found: dict[str, Citation] = {}
    for run in runs:
        name = run.spec.editor.name
        cards: list[tuple[str, str, Mapping[str, object]]] = []
        if name in METHODS.names():
            cards.append((f"method {run.spec.editor.variant}", name, METHODS.card(name)))
        for one in (*run.spec.benchmark, *([run.spec.train] if run.spec.train else ())):
            cards.append((f"benchmark {one.name}", one.name, BENCHMARKS.card(one.name)))
        for about, own_name, card in cards:
            for citation in read_citations(about, own_name, card):
                _add(found, citation)
    own = Citation("corrigenda", "this library", "Corrigenda contributors: Corrigenda", "")
    return (*found.values(), own)


def read_citations(about: str, name: str, card: Mapping[str, object]) -> list[Citation]:
    """Read the works that a card names under `paper`, separated by semicolons.

    Each is "Authors: Title, Venue Year", with a note in brackets after it if only a part is meant.
    The address of the card is that of the first work. A card without an address has none, since
    what it describes is of this library itself.

    Example:
        >>> card = {"paper": "Ann, Bo: Maps, X 2020; Cy et al.: Seas, 2021 (data)", "url": "u"}
        >>> [(one.key, one.note) for one in read_citations("method m", "m", card)]
        [('m2020', ''), ('m2021', 'data')]
    """
    text, url = str(card.get("paper", "")), str(card.get("url", ""))
    if not (text and url):
        return []
    found: list[Citation] = []
    for place, work in enumerate(text.split("; ")):
        matched = _NOTE.fullmatch(work)
        assert matched is not None, "any text matches"
        year = _YEAR.search(matched["work"].rpartition(", ")[2])
        key = f"{name.replace('-', '_')}{year.group() if year else ''}"
        if any(one.key == key for one in found):
            key = f"{key}{chr(ord('a') + place)}"
        own = url if place == 0 else ""
        found.append(Citation(key, about, matched["work"], own, matched["note"] or ""))
    return found


def _add(found: dict[str, Citation], citation: Citation) -> None:
    """Add a work, or what else it describes if it is listed already."""
    known = found.get(citation.text)
    if known is None:
        found[citation.text] = citation
    elif citation.about not in known.about.split(", "):
        found[citation.text] = known._replace(
            about=f"{known.about}, {citation.about}",
            url=known.url or citation.url,
            note=known.note if known.note == citation.note else "",
        )


def _escape(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text)
