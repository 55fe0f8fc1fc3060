"""Registries: classes by name with their cards, listed without importing them."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from corrigenda.cards import Card, parse_card, read_card
from corrigenda.errors import CorrigendaError, did_you_mean

Kind = TypeVar("Kind")


class Entry(NamedTuple):
    """Place of a registered class and its card.

    Attributes:
        module: Dotted name of the module that defines it.
        card: Its card.
        folder: Folder of the card; the presets of a method are in it.
    """

    module: str
    card: Card
    folder: Traversable


class Registry(Generic[Kind]):
    """Classes of one kind by name: those with a card in a package, and plug-ins of other packages.

    A card is a Markdown file with TOML front matter, which holds the name. `card.md` describes the
    class in `editor.py` of its folder; any other card, such as `mquake.md`, the class in the module
    of the same stem, or in the folder's `editor.py` where there is no such module. A class belongs
    to a card when its attribute `name` is the card's.

    Names are understood in any case and with underscores in place of hyphens.
    """

    def __init__(
        self,
        what: str,
        package: str,
        base: str,
        unknown: type[CorrigendaError],
        *,
        group: str | None = None,
        attribute: str = "name",
    ) -> None:
        """Create a registry; its package is read when it is first used.

        Args:
            what: Noun for messages.
            package: Package whose cards are listed.
            base: Class that all of them extend, as `module:Class`.
            unknown: Raised for a name that is not known.
            group: Entry points through which other packages add their own: `name =
                "package.module:Class"`, with the card `module.md` next to the module, or `card.md`
                where the module is in a package of its own.
            attribute: Class attribute that holds the name.
        """
        self.what, self.package, self.group = what, package, group
        self._base, self._unknown, self._attribute = base, unknown, attribute

    def names(self) -> tuple[str, ...]:
        """Return all names: those of the package, then those of plug-ins, each sorted."""
        own = entries_in(self.package)
        return (*own, *sorted(set(self._plug_ins()) - set(own)))

    def resolve(self, name: str) -> str:
        """Return the registered form of a name.

        Raises:
            CorrigendaError: no such name, with the code of the kind; the message has the closest.
        """
        plain = name.strip().lower().replace("_", "-")
        known = self.names()
        if plain not in known:
            raise self._unknown(f'no {self.what} "{name}".', hint=did_you_mean(plain, known))
        return plain

    def entry(self, name: str) -> Entry:
        """Return the place of a class and its card.

        Raises:
            CorrigendaError: no such name.
        """
        name = self.resolve(name)
        own = entries_in(self.package).get(name)
        return own if own is not None else _make_entry(self._plug_ins()[name])

    def get(self, name: str) -> type[Kind]:
        """Return the class registered under a name; its module is imported.

        Raises:
            CorrigendaError: no such name, or its module has no such class.
        """
        name = self.resolve(name)
        module, _, attribute = self._base.partition(":")
        base: type[Kind] = getattr(importlib.import_module(module), attribute)
        for found in vars(importlib.import_module(self.entry(name).module)).values():
            if (
                inspect.isclass(found)
                and issubclass(found, base)
                and getattr(found, self._attribute, "") == name
            ):
                return found
        raise self._unknown(
            f'{self.entry(name).module} defines no {attribute} with {self._attribute} "{name}".'
        )

    def class_names(self) -> dict[str, str]:
        """Return the registered name of each class by the name of the class; nothing is imported.

        Classes whose name is not written in their own module are left out.
        """
        found: dict[str, str] = {}
        for name, entry in entries_in(self.package).items():
            title = _find_class(entry.module, self._attribute, name)
            if title:
                found[title] = name
        for name, point in self._plug_ins().items():
            found.setdefault(point.attr, name)
        return found

    def card(self, name: str) -> dict[str, object]:
        """Return the front matter of a card: the TOML between its first two `+++` lines.

        Raises:
            CorrigendaError: no such name.
        """
        return self.entry(name).card.matter

    def card_text(self, name: str) -> str:
        """Return the Markdown of a card, without the front matter.

        Raises:
            CorrigendaError: no such name.
        """
        return self.entry(name).card.text

    def _plug_ins(self) -> dict[str, EntryPoint]:
        return {} if self.group is None else plug_ins(self.group)


@cache
def entries_in(package: str) -> dict[str, Entry]:
    """Return everything with a card in a package or in a folder of it, sorted by name."""
    root = files(package)
    found: dict[str, Entry] = {}
    places = [(root, package)]
    places += [
        (item, f"{package}.{item.name}")
        for item in root.iterdir()
        if item.is_dir() and item.joinpath("__init__.py").is_file()
    ]
    for folder, dotted in places:
        for item in folder.iterdir():
            if not item.name.endswith(".md"):
                continue
            stem = item.name.removesuffix(".md")
            own = folder.joinpath(f"{stem}.py").is_file()
            card = parse_card(item.read_text(encoding="utf-8"))
            name = str(card.matter["name"])
            found[name] = Entry(f"{dotted}.{stem if own else 'editor'}", card, folder)
    return dict(sorted(found.items()))


@cache
def _find_class(module: str, attribute: str, name: str) -> str:
    """Return the class of a module's text whose attribute is a name; empty where there is none."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return ""
    text = Path(spec.origin).read_text(encoding="utf-8")
    for part in re.split(r"^(?=class \w)", text, flags=re.MULTILINE)[1:]:
        if re.search(rf"^    {attribute}\b.*= \"{re.escape(name)}\"$", part, re.MULTILINE):
            return part.removeprefix("class ").partition("(")[0].partition(":")[0]
    return ""


@cache
def plug_ins(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name."""
    return {point.name: point for point in entry_points(group=group)}


def _make_entry(point: EntryPoint) -> Entry:
    spec = importlib.util.find_spec(point.module)
    assert spec is not None, f"{point.value} cannot be found"
    assert spec.origin is not None, f"{point.value} has no file"
    file = Path(spec.origin)
    named, plain = file.with_suffix(".md"), file.with_name("card.md")
    return Entry(point.module, read_card(named if named.is_file() else plain), file.parent)
