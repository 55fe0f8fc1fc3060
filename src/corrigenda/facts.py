"""What should become true: text only, no tensors, no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Required

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from corrigenda.errors import (
    AmbiguousSubject,
    CorrigendaError,
    EmptyTarget,
    MalformedFacts,
    SubjectNotFound,
)


class Span(NamedTuple):
    """Half-open range of characters `[start, end)` in a string."""

    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One correction: after `prompt`, the model should say `target`.

    Attributes:
        prompt: Text up to the answer, without the answer and without trailing space.
        target: The answer that should become true, without leading space.
        subject: The entity the fact is about, exactly as written in `prompt`; None where a method
            needs no subject.
        subject_start: Character at which the subject starts; needed only when it occurs more than
            once.
        before: What held before (the old answer), where known.
        aliases: Other accepted spellings of the target.
        paraphrases: Other prompts that should now get the target.
        neighbours: Prompts whose answers should stay as they are.
        separator: Text between prompt and target; empty for languages written without spaces.
        name: How messages refer to this fact (a record id, a file and line).
    """

    prompt: str
    target: str
    subject: str | None = None
    subject_start: int | None = None
    before: str | None = None
    aliases: tuple[str, ...] = ()
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    separator: str = " "
    name: str = field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise EmptyTarget(
                "the prompt is empty.", where=self.name, hint="Give the text up to the answer."
            )
        if not self.target.strip():
            raise EmptyTarget(
                f'the target of "{self.prompt}" is empty.',
                where=self.name,
                hint="Give the answer that should hold.",
            )
        if self.subject is not None:
            self.span  # noqa: B018 - raises where the subject is missing or ambiguous

    @property
    def span(self) -> Span:
        """Characters of the subject within `prompt`.

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
        """How messages refer to this fact."""
        return self.name or f'"{self.prompt}"'


class _Record(TypedDict, total=False):
    """The keys a facts file may hold; `prompt` and `target` are required."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]  # read by pydantic

    prompt: Required[str]
    target: Required[str]
    subject: str | None
    subject_start: int | None
    before: str | None
    aliases: tuple[str, ...]
    paraphrases: tuple[str, ...]
    neighbours: tuple[str, ...]
    separator: str
    name: str


_RECORD = TypeAdapter(_Record)


def find_subject(prompt: str, subject: str, *, start: int | None = None, where: str = "") -> Span:
    """Locate a subject in a prompt by exact match.

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
                f'"{subject}" does not stand at character {start} of the prompt "{prompt}".',
                where=where,
                hint="`subject_start` counts characters from 0.",
            )
        return Span(start, start + len(subject))
    found = list(_occurrences(prompt, subject))
    if not found:
        at = prompt.lower().find(subject.lower())
        close = f' Did you mean "{prompt[at : at + len(subject)]}"?' if at >= 0 else ""
        raise SubjectNotFound(
            f'"{subject}" does not occur in the prompt "{prompt}".',
            where=where,
            hint=f"Subjects are matched exactly, including case.{close}",
        )
    free = [span for span in found if _free_standing(prompt, span)] or found
    if len(free) > 1:
        starts = ", ".join(str(span.start) for span in free)
        raise AmbiguousSubject(
            f'"{subject}" occurs {len(free)} times in the prompt "{prompt}".',
            where=where,
            hint=f"Say which one with `subject_start`: one of {starts}.",
        )
    return free[0]


def _occurrences(text: str, part: str) -> Iterator[Span]:
    at = text.find(part)
    while at >= 0:
        yield Span(at, at + len(part))
        at = text.find(part, at + 1)


def _free_standing(text: str, span: Span) -> bool:
    before = text[span.start - 1] if span.start else " "
    after = text[span.end] if span.end < len(text) else " "
    return not (before.isalnum() or after.isalnum())


def read_facts(path: str | Path) -> list[Fact]:
    """Read a JSONL file with one fact per line; blank lines are skipped.

    Raises:
        MalformedFacts (CG101): lists every bad line with its number.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MalformedFacts(f"{path} cannot be read: {error}.") from error
    return facts_from_lines(text.split("\n"), where=path.name)


def facts_from_lines(lines: Iterable[str], *, where: str) -> list[Fact]:
    """Parse JSON lines into facts; all problems are collected in one `MalformedFacts` (CG101)."""
    facts: list[Fact] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name = f"{where}:{number}"
        try:
            record = _RECORD.validate_python(json.loads(line))
            record.setdefault("name", name)
            facts.append(Fact(**record))
        except json.JSONDecodeError as error:
            problems.append(f"line {number}: not JSON ({error.msg} at column {error.colno})")
        except CorrigendaError as error:
            problems.append(f"line {number}: {error.code} {error.message}")
        except ValidationError as error:
            details = "; ".join(
                f"{'.'.join(map(str, item['loc'])) or 'fact'}: {item['msg']}"
                for item in error.errors()
            )
            problems.append(f"line {number}: {details}")
    if problems:
        raise MalformedFacts(
            f"{len(problems)} bad line(s):\n    " + "\n    ".join(problems),
            where=where,
            hint='One JSON object a line: {"prompt": ..., "target": ..., "subject": ...}.',
        )
    return facts
