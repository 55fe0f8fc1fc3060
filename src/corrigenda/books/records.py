"""Records of a book: one JSON file for each correction, and the TOML file of the base model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cached_property
from types import MappingProxyType
from typing import cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from corrigenda.errors import CorrigendaError, DamagedBook, NewerFormat
from corrigenda.facts import Fact, as_facts
from corrigenda.text_files import UnreadableText, parse_json, parse_toml

BOOK_FORMAT = 1
"""Version of the format of books that this library writes; older ones are read."""

ID_DIGITS = 12
"""Hexadecimal digits of the id of a correction."""

FAILED = "failed"
"""Outcome of a fact that the corrected model does not state; see `corrigenda.assessment.Outcome`.
"""

HELD = "already true"
"""Outcome of a fact that holds without the correction too."""

_NAME = re.compile(rf"(\d{{4,}})-([0-9a-f]{{{ID_DIGITS}}})")
_COUNT = re.compile(r"\d+/\d+")
_FROM_GIT = "Take the file from the history again: git checkout -- FILE."


class BookBase(BaseModel):
    """The model that a book corrects, as `book.toml` names it.

    Attributes:
        name: What it is loaded by.
        digest: Digest of its weights without any patch.
        family: Architecture.
        num_layers: Number of blocks.
        d_model: Width of the residual stream.
        d_inner: Width of the feed-forward blocks.
        vocabulary: Size of the vocabulary.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    digest: str
    family: str
    num_layers: int
    d_model: int
    d_inner: int
    vocabulary: int

    @property
    def shape(self) -> tuple[str, int, int, int, int]:
        """Return family and sizes, which the next release of a model shares."""
        return (self.family, self.num_layers, self.d_model, self.d_inner, self.vocabulary)

    def to_toml(self) -> str:
        """Return the text of `book.toml`."""
        lines = [f"format_version = {BOOK_FORMAT}", "", "[base]"]
        for name, value in self.model_dump().items():
            lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
        return "\n".join(lines) + "\n"


def parse_base(text: str, where: str) -> BookBase:
    """Return the base model that the text of `book.toml` names.

    Raises:
        NewerFormat (CG404): the book was written by a newer version.
        DamagedBook (CG802): the text is not what was written.
    """
    try:
        table = parse_toml(text)
        version = table.pop("format_version")
        if isinstance(version, int) and version > BOOK_FORMAT:
            raise NewerFormat(
                f"the book has format version {version}; this version reads up to {BOOK_FORMAT}.",
                where=where,
                hint="Upgrade: pip install --upgrade corrigenda.",
            )
        return BookBase.model_validate(table.pop("base"))
    except (UnreadableText, ValidationError, KeyError) as error:
        raise DamagedBook(_explain(text, error), where=where, hint=_FROM_GIT) from error


class BookVerdict(BaseModel):
    """What the corrected model answered when it was last asked about a correction.

    Attributes:
        outcomes: Outcome of each fact: "succeeded", "failed", or "already true" where it holds
            without the correction too.
        shares: Prompts with the wanted answer over prompts asked, as "2/3", by role; those in the
            chat form under the role and " in chat".
        guard: Result of a measurement of damage, such as "free" or "costly"; empty where none was
            made.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcomes: tuple[str, ...] = ()
    shares: Mapping[str, str] = Field(default_factory=dict)
    guard: str = ""

    @field_validator("shares")
    @classmethod
    def _are_counts(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        if not all(_COUNT.fullmatch(one) for one in value.values()):
            raise ValueError('a share is written as "2/3"')
        return MappingProxyType(dict(value))

    @property
    def holds(self) -> bool:
        """Return whether every fact was the answer."""
        return FAILED not in self.outcomes

    def to_json(self) -> dict[str, object]:
        """Return plain dictionaries and lists, without what is empty."""
        found: dict[str, object] = {"outcomes": list(self.outcomes), "shares": dict(self.shares)}
        return found | ({"guard": self.guard} if self.guard else {})

    def __hash__(self) -> int:
        return hash((self.outcomes, tuple(sorted(self.shares.items())), self.guard))


class _Record(BaseModel):
    """Content of the file of a correction."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    facts: list[dict[str, JsonValue]]
    method: str
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    patch: str = ""
    made_on: str = ""
    source: str = ""
    verdict: BookVerdict = BookVerdict()


@dataclass(frozen=True)
class Correction:
    """One correction of a book: facts that one patch makes true.

    Attributes:
        facts: What became true.
        method: Name of the editor; empty where none is known.
        settings: Its configuration.
        patch: Digest of its patch; empty where the book holds none: the facts hold on this base
            already, or no patch made them true.
        made_on: State of the patches that were active when the patch was made; empty where it was
            made on the base alone.
        source: Id that it has in the book from which it was moved.
        verdict: Answers when it was last asked.
        number: Place in the order of the book, from 1.
    """

    facts: tuple[Fact, ...]
    method: str = ""
    settings: Mapping[str, JsonValue] = field(default_factory=dict)
    patch: str = ""
    made_on: str = ""
    source: str = ""
    verdict: BookVerdict = field(default_factory=BookVerdict)
    number: int = 0

    @cached_property
    def id(self) -> str:
        """Return a hash of the facts (prompt and target) and the patch."""
        facts = [[fact.prompt, fact.target] for fact in self.facts]
        text = json.dumps([facts, self.patch], ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]

    @property
    def name(self) -> str:
        """Return the name of its file without the ending: number and id."""
        return f"{self.number:04d}-{self.id}"

    @property
    def label(self) -> str:
        """Return the first fact in a line, and how many more there are."""
        first, *others = self.facts
        more = f" (and {len(others)} more)" if others else ""
        return f"{first.prompt} -> {first.target}{more}"

    def to_json(self) -> dict[str, object]:
        """Return plain dictionaries and lists: what its file holds."""
        found: dict[str, object] = {"facts": [_write_fact(fact) for fact in self.facts]}
        found |= {"method": self.method, "settings": dict(self.settings)}
        for name in ("patch", "made_on", "source"):
            if value := getattr(self, name):
                found[name] = value
        return found | {"verdict": self.verdict.to_json()}

    def to_text(self) -> str:
        """Return the text of its file."""
        return json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n"

    def with_number(self, number: int) -> Correction:
        """Return the same correction at another place."""
        return replace(self, number=number)


def parse_correction(name: str, text: str, where: str) -> Correction:
    """Return the correction in the text of a file.

    Args:
        name: Name of the file without the ending.
        text: Its text.
        where: The file, for messages.

    Raises:
        DamagedBook (CG802): it is not what was written, or another correction than its name says.
    """
    try:
        record = _Record.model_validate(parse_json(text))
        facts = as_facts(record.facts)
    except (UnreadableText, ValidationError, CorrigendaError) as error:
        raise DamagedBook(_explain(text, error), where=where, hint=_FROM_GIT) from error
    rest = {one: getattr(record, one) for one in _Record.model_fields if one != "facts"}
    number, id_ = split_name(name) or (0, "")
    found = Correction(tuple(replace(fact, name="") for fact in facts), **rest, number=number)
    if not facts or found.id != id_:
        raise DamagedBook(
            "the facts or the patch that this file names are not those it was written for.",
            where=where,
            hint="Prompt, target and patch of a correction do not change; undo it and add another. "
            f"{_FROM_GIT}",
        )
    return found


def split_name(name: str) -> tuple[int, str] | None:
    """Return the number and the id in the name of a file without its ending; None for others."""
    found = _NAME.fullmatch(name)
    return (int(found[1]), found[2]) if found else None


def state_of(ids: Iterable[str]) -> str:
    """Return a hash of an order of corrections; empty for none."""
    text = "\n".join(ids)
    return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS] if text else ""


def _write_fact(fact: Fact) -> dict[str, object]:
    """Return the fields of a fact that say something."""
    found: dict[str, object] = {}
    for one in fields(Fact):
        value = cast("object", getattr(fact, one.name))
        if one.name == "name" or (one.default is not MISSING and value == one.default):
            continue
        found[one.name] = (
            list(cast("tuple[str, ...]", value)) if isinstance(value, tuple) else value
        )
    return found


def _explain(text: str, error: Exception) -> str:
    if "\n<<<<<<< " in f"\n{text}":
        return "the file holds the marks of a merge that was not ended."
    reason = str(error).splitlines()[0].rstrip(".:")
    return f"the file is not what was written: {reason}."
