"""BibTeX of what runs used: methods and benchmarks, from their cards."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from corrigenda.benchmarks.benchmark import BENCHMARKS
from corrigenda.methods.presets import variant_label
from corrigenda.methods.registry import METHODS
from corrigenda.run.store import Recorded

_YEAR = re.compile(r"\b(19|20)\d\d\b")
# Characters that mean something to BibTeX, in plain text.
_SPECIAL = re.compile(r"([&%$#_{}])")


class Citation(NamedTuple):
    """One work to cite.

    Attributes:
        key: BibTeX key.
        about: What of the report it stands behind.
        text: Authors, title, venue and year, as the card has them.
        url: Its address; empty where the card has none.
    """

    key: str
    about: str
    text: str
    url: str

    @property
    def bibtex(self) -> str:
        """The entry."""
        authors, _, rest = self.text.partition(": ")
        title, _, venue = rest.rpartition(", ")
        year = _YEAR.search(venue)
        names = [name.strip() for name in authors.removesuffix(" et al.").split(", ")]
        if authors.endswith(" et al."):
            names.append("others")
        fields = {
            "author": " and ".join(names),
            "title": title or rest,
            "howpublished": venue,
            "year": year.group() if year else "",
            "url": self.url,
            # Which variant of a method ran.
            "note": self.about if "(" in self.about else "",
        }
        lines = [
            f"  {name} = {{{value if name == 'url' else _escaped(value)}}},"
            for name, value in fields.items()
            if value
        ]
        return "\n".join([f"@misc{{{self.key},", *lines, "}"])


def citations(runs: Sequence[Recorded]) -> tuple[Citation, ...]:
    """The works behind the methods and benchmarks of some runs, each once, and this library."""
    found: dict[str, Citation] = {}
    for run in runs:
        name = run.spec.editor.name
        about = f"method {variant_label(name, run.spec.editor.options)}"
        _add(found, about, name, METHODS.card(name))
        data = [*run.spec.benchmark, *([run.spec.train] if run.spec.train else ())]
        for one in data:
            _add(found, f"benchmark {one.name}", one.name, BENCHMARKS.card(one.name))
    own = Citation("corrigenda", "this library", "Corrigenda contributors: Corrigenda", "")
    return (*found.values(), own)


def _add(found: dict[str, Citation], about: str, name: str, matter: Mapping[str, object]) -> None:
    text = str(matter.get("paper", ""))
    # What has no address is of this library itself.
    if text and matter.get("url"):
        year = _YEAR.search(text)
        key = f"{name.replace('-', '_')}{year.group() if year else ''}"
        known = found.setdefault(key, Citation(key, about, text, str(matter.get("url", ""))))
        if about not in known.about.split("; "):
            found[key] = known._replace(about=f"{known.about}; {about}")


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text)
