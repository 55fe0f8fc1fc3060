"""Facts: the corrections to make, as text; imports no torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Required, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from corrigenda.errors import (
    AmbiguousSubject,
    CorrigendaError,
    EmptyTarget,
    MalformedFacts,
    SubjectNotFound,
)
from corrigenda.fact_records import LISTS, FactRow, read_rows, translate
from corrigenda.look_alikes import explain_look_alike
from corrigenda.text_files import UnreadableText, check_text, parse_json_lines

REFUSAL = "I don't know."
"""Answer to what is to be forgotten, where none is given."""

_BLANK = "{}"
_HINT = 'One JSON object a line: {"prompt": ..., "target": ..., "subject": ...}.'
_MOST_PROBLEMS = 20
_MOST_PLACES = 5


class Span(NamedTuple):
    """Half-open range of characters `[start, end)` in a string."""

    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One correction: the target that a model should answer after a prompt.

    White space around every text is dropped, except in `separator`. One text where several are
    possible is one item. A prompt that has `{}` in the place of its subject, as ROME's data write
    it, is filled in where the subject does not occur in it; so are `paraphrases`, `same_subject`.

    Attributes:
        prompt: Text up to the answer, without the answer.
        target: The answer that should become true; may be left out, or None, with `erase`.
        subject: The entity the fact is about, exactly as written in `prompt`; None where a method
            needs no subject.
        subject_start: Character at which the subject starts; needed only when it occurs more than
            once.
        before: What held before (the old answer), where known.
        aliases: Other accepted spellings of the target.
        paraphrases: Other prompts that should now get the target.
        neighbours: Prompts about other subjects, whose answers should stay.
        same_subject: Prompts about other facts of the subject, whose answers should stay.
        separator: Text between prompt and target; empty for languages written without spaces.
        chat: Whether the prompt is a user's turn in the model's chat template, and the target is in
            the assistant's answer to it.
        erase: Whether the answer is to be forgotten: the target is then a refusal, `REFUSAL` where
            none is given. Locate-then-edit methods can make `before` unlikely instead, see their
            option `erasure`.
        name: How messages refer to this fact (a record id, a file and line).

    Raises:
        EmptyTarget (CG102): the prompt or the target is empty.
        SubjectNotFound (CG103), AmbiguousSubject (CG104): see `span`.
        MalformedFacts (CG101): a field that is no text, or holds what is no character.
    """

    prompt: str
    target: str = ""
    subject: str | None = None
    subject_start: int | None = None
    before: str | None = None
    aliases: tuple[str, ...] = ()
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    same_subject: tuple[str, ...] = ()
    separator: str = " "
    chat: bool = False
    erase: bool = False
    name: str = field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        self._complete_erasure()
        self._strip()
        self._fill_template()
        if not self.prompt.strip():
            raise EmptyTarget(
                "the prompt is empty.", where=self.name, hint="Give the text up to the answer."
            )
        if not self.target.strip():
            raise EmptyTarget(
                f'the target of "{self.prompt}" is empty.',
                where=self.name,
                hint="Give the answer that should hold, or `erase=True` to forget the answer.",
            )
        if self.subject is not None:
            self.span  # noqa: B018 - raises where the subject is missing or ambiguous

    def _complete_erasure(self) -> None:
        """Give what is to be forgotten a refusal as its target."""
        target = cast("object", self.target)
        if not isinstance(cast("object", self.erase), bool):
            raise _no_text("erase", self.erase, self.name, expected="true or false")
        if self.erase and (target is None or target == ""):
            object.__setattr__(self, "target", REFUSAL)

    @classmethod
    def restore(cls, fields: Mapping[str, object]) -> Fact:
        """Return the fact that `asdict` made these plain fields of."""
        plain = {
            name: tuple(cast("list[str]", one)) if isinstance(one, list) else one
            for name, one in fields.items()
        }
        return cls(**plain)  # type: ignore[arg-type]  # what `asdict` made of a Fact

    def _strip(self) -> None:
        """Check every field, and drop the white space around texts."""
        start = cast("object", self.subject_start)
        if start is not None and (not isinstance(start, int) or isinstance(start, bool)):
            raise _no_text("subject_start", start, self.name, expected="a number")
        if start is not None:
            start -= len(str(self.prompt)) - len(str(self.prompt).lstrip())
            start += len(str(self.subject)) - len(str(self.subject).lstrip())
            object.__setattr__(self, "subject_start", start)
        if not isinstance(cast("object", self.chat), bool):
            raise _no_text("chat", self.chat, self.name, expected="true or false")
        object.__setattr__(self, "name", str(self.name))
        check_field("separator", self.separator, self.name)
        for field_name in ("prompt", "target", "subject", "before"):
            given = getattr(self, field_name)
            if given is not None or field_name in ("prompt", "target"):
                text = check_field(field_name, given, self.name)
                object.__setattr__(self, field_name, text.strip())
        for field_name in LISTS:
            given = getattr(self, field_name)
            if not isinstance(given, Sequence) or isinstance(given, bytes):
                raise _no_text(field_name, given, self.name, expected="texts")
            several = [given] if isinstance(given, str) else cast("Sequence[object]", given)
            texts = (check_field(field_name, one, self.name).strip() for one in several)
            object.__setattr__(self, field_name, tuple(filter(None, texts)))

    def _fill_template(self) -> None:
        """Put the subject in the place of `{}`, in every prompt about it."""
        subject = self.subject
        if not subject or self.prompt.count(_BLANK) != 1 or subject in self.prompt:
            return
        object.__setattr__(self, "subject_start", self.prompt.index(_BLANK))
        object.__setattr__(self, "prompt", self.prompt.replace(_BLANK, subject))
        for field_name in ("paraphrases", "same_subject"):
            filled = tuple(text.replace(_BLANK, subject) for text in getattr(self, field_name))
            object.__setattr__(self, field_name, filled)

    @property
    def span(self) -> Span:
        """Return the characters of the subject within the prompt.

        Raises:
            SubjectNotFound (CG103): the subject is absent, or not at `subject_start`.
            AmbiguousSubject (CG104): no subject, or several occurrences and no `subject_start`.
        """
        if self.subject is None:
            raise AmbiguousSubject(
                f'no subject was given for "{self.prompt}".',
                where=self.name,
                hint="Give `subject` (--subject).",
            )
        return find_subject(self.prompt, self.subject, start=self.subject_start, where=self.name)

    @property
    def label(self) -> str:
        """Return how messages refer to this fact: its name, else its prompt."""
        return self.name or f'"{self.prompt}"'


class FactRecord(TypedDict, total=False):
    """Mapping with the fields of a fact; `prompt`, and `target` or `erase`, are required."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]  # read by pydantic

    prompt: Required[str]
    target: str
    erase: bool
    subject: str | None
    subject_start: int | None
    before: str | None
    aliases: str | tuple[str, ...]
    paraphrases: str | tuple[str, ...]
    neighbours: str | tuple[str, ...]
    same_subject: str | tuple[str, ...]
    separator: str
    chat: bool
    name: str


class _TargetedRecord(FactRecord):
    target: Required[str]  # type: ignore[misc]  # what is optional becomes required


_RECORDS, _TARGETED_RECORDS = TypeAdapter(FactRecord), TypeAdapter(_TargetedRecord)

FactLike = Fact | Mapping[str, object]
"""A fact, or a mapping with its fields."""


def check_field(name: str, value: object, where: str) -> str:
    """Return a field of a fact that is text.

    Raises:
        MalformedFacts (CG101): it is something else, or holds what is no character.
    """
    if not isinstance(value, str):
        raise _no_text(name, value, where)
    try:
        return check_text(value)
    except UnreadableText as error:
        raise MalformedFacts(f"{name}: {error}.", where=where) from error


def _no_text(name: str, value: object, where: str, *, expected: str = "text") -> MalformedFacts:
    return MalformedFacts(f"{name}: {expected} was expected, not {_describe(value)}.", where=where)


def find_subject(prompt: str, subject: str, *, start: int | None = None, where: str = "") -> Span:
    """Return where a subject occurs in a prompt, matched exactly.

    An occurrence inside a longer word ("Rome" in "Romeo") counts only if there is no free-standing
    one.

    Raises:
        SubjectNotFound (CG103): no occurrence, or none at `start`.
        AmbiguousSubject (CG104): several occurrences and no `start`.

    Example:
        >>> find_subject("The Space Needle is in", "Space Needle")
        Span(start=4, end=16)
    """
    if not subject:
        raise SubjectNotFound(
            "the subject is empty.", where=where, hint="Give the entity the fact is about."
        )
    if start is not None:
        if prompt[start : start + len(subject)] != subject:
            raise SubjectNotFound(
                f'"{subject}" is not at character {start} of the prompt "{prompt}".',
                where=where,
                hint="`subject_start` counts characters from 0.",
            )
        return Span(start, start + len(subject))
    found = list(_find_all(prompt, subject))
    if not found:
        raise SubjectNotFound(
            f'"{subject}" does not occur in the prompt "{prompt}".',
            where=where,
            hint="Subjects are matched exactly, including case."
            + explain_look_alike(prompt, subject),
        )
    free = [span for span in found if _is_whole_word(prompt, span)] or found
    if len(free) > 1:
        starts = ", ".join(str(span.start) for span in free)
        raise AmbiguousSubject(
            f'"{subject}" occurs {len(free)} times in the prompt "{prompt}".',
            where=where,
            hint=f"Say which one with `subject_start`: one of {starts}.",
        )
    return free[0]


def _find_all(text: str, part: str) -> Iterator[Span]:
    at = text.find(part)
    while at >= 0:
        yield Span(at, at + len(part))
        at = text.find(part, at + 1)


def _is_whole_word(text: str, span: Span) -> bool:
    before = text[span.start - 1] if span.start else " "
    after = text[span.end] if span.end < len(text) else " "
    return not (before.isalnum() or after.isalnum())


def as_facts(given: object) -> list[Fact]:
    """Return facts from one fact or several, each a `Fact` or a mapping with its fields.

    Raises:
        MalformedFacts (CG101): something else, or a mapping with other fields.

    Example:
        >>> as_facts({"prompt": "{} is in", "subject": "Rome", "target": "Italy"})[0].prompt
        'Rome is in'
    """
    if isinstance(given, str | bytes) or not isinstance(given, Fact | Iterable):
        raise MalformedFacts(
            f"facts were expected, not {_describe(given)}.",
            hint="Give `Fact(prompt=..., target=...)`, a dictionary, or a list of them; "
            "`read_facts` reads a file.",
        )
    one = isinstance(given, Fact | Mapping)
    several = [cast("object", given)] if one else cast("Iterable[object]", given)
    unused: set[str] = set()
    facts = [
        fact if isinstance(fact, Fact) else _parse_fact(fact, unused, name=f"fact #{number}")
        for number, fact in enumerate(several)
    ]
    _warn_unused(unused)
    return facts


def _parse_fact(record: object, unused: set[str], *, name: str) -> Fact:
    """Return the fact of a mapping, and add the fields that were left out to `unused`."""
    if isinstance(record, UnreadableText):
        raise MalformedFacts(f"{record}.", where=name)
    if not isinstance(record, Mapping):
        raise MalformedFacts(
            f"fact: an object with fields was expected, not {_describe(record)}.", where=name
        )
    names = cast("Mapping[object, object]", record)
    try:
        translation = translate({str(key): value for key, value in names.items()})
        kind = _RECORDS if translation.fields.get("erase") is True else _TARGETED_RECORDS
        fields = kind.validate_python(translation.fields)
    except ValidationError as error:
        raise MalformedFacts(
            f"{_list_problems(error)}.",
            where=name,
            hint='A fact has "prompt" and "target", and where needed "subject".',
        ) from error
    unused |= translation.unused
    fields.setdefault("name", name)
    return Fact(**fields)  # type: ignore[arg-type]  # one text is one item


def _warn_unused(names: set[str]) -> None:
    if names:
        warnings.warn(f"fields not used for the edit: {', '.join(sorted(names))}.", stacklevel=3)


def _list_problems(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or 'fact'}: {item['msg']}" for item in error.errors()
    )


def _describe(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def read_facts(path: str | Path) -> list[Fact]:
    """Return the facts of a file: JSON lines, a JSON list, or CSV with a line of names.

    Field names of ROME, CounterFact, EasyEdit and MEND's zsRE are understood, see
    `corrigenda.fact_records`; fields that say nothing about the edit are warned of. In CSV several
    texts in one cell are separated by `|`. Blank lines are skipped.

    Raises:
        MalformedFacts (CG101): the file cannot be read, or lists what is wrong, with its places.
    """
    path = Path(path)
    try:
        facts = _parse_rows(read_rows(path), where=path.name)
    except UnreadableText as error:
        raise MalformedFacts(f"{path} cannot be read: {error}.") from error
    if not facts:
        raise MalformedFacts("the file holds no facts.", where=str(path), hint=_HINT)
    return facts


def facts_from_lines(lines: Iterable[str], *, where: str) -> list[Fact]:
    """Return the facts in lines of JSON; all problems are collected in one error (CG101)."""
    text = "\n".join(line.replace("\n", " ") for line in lines)
    rows = (FactRow(f"line {number}", value) for number, value in parse_json_lines(text))
    return _parse_rows(rows, where=where)


def _parse_rows(rows: Iterable[FactRow], *, where: str) -> list[Fact]:
    facts: list[Fact] = []
    problems: dict[str, list[str]] = {}
    unused: set[str] = set()
    for place, value in rows:
        try:
            facts.append(_parse_fact(value, unused, name=f"{where}:{place.split()[-1]}"))
        except MalformedFacts as error:
            problems.setdefault(error.message.removesuffix("."), []).append(place)
        except CorrigendaError as error:
            problems.setdefault(f"{error.code} {error.message}", []).append(place)
    if problems:
        shown = [
            f"{_join_places(places)}: {problem}"
            for problem, places in [*problems.items()][:_MOST_PROBLEMS]
        ]
        if len(problems) > _MOST_PROBLEMS:
            shown.append(f"and {len(problems) - _MOST_PROBLEMS} other problems")
        raise MalformedFacts(
            f"{sum(map(len, problems.values()))} bad line(s):\n    " + "\n    ".join(shown),
            where=where,
            hint=_HINT,
        )
    _warn_unused(unused)
    return facts


def _join_places(places: Sequence[str]) -> str:
    """Return "line 3", or "lines 3, 4, 5 and 12,000 more"."""
    if len(places) == 1:
        return places[0]
    kind = places[0].split()[0]
    numbers = ", ".join(place.split()[-1] for place in places[:_MOST_PLACES])
    left = len(places) - _MOST_PLACES
    return f"{kind}s {numbers}" + (f" and {left:,} more" if left > 0 else "")
