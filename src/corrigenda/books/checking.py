"""All corrections of a book asked again, and what is to be said of a book without asking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from corrigenda.assessment import measure
from corrigenda.books.conflicts import SharedQuestion, find_conflicts
from corrigenda.books.folder import BookFolder
from corrigenda.books.patches import (
    list_disturbed,
    list_with_patches,
    read_patch,
    require_base_of,
    sum_patches,
)
from corrigenda.books.records import Correction, Verdict
from corrigenda.books.verdicts import judge
from corrigenda.engines.pocket_world import add_related_prompts
from corrigenda.errors import CorrigendaError
from corrigenda.patch.ledger import ledger_of

if TYPE_CHECKING:
    from corrigenda.assessment import Assessment
    from corrigenda.lm.model import LanguageModel


class Checked(NamedTuple):
    """One correction that was asked again.

    Attributes:
        correction: The correction, with the verdict from before.
        verdict: What was answered now.
    """

    correction: Correction
    verdict: Verdict

    @property
    def changed(self) -> bool:
        """Return whether the outcomes or shares are others than before."""
        return self.verdict != self.correction.verdict


@dataclass(frozen=True)
class BookCheck:
    """Result of asking all corrections of a book again.

    Attributes:
        results: Each correction with its verdict, in order.
        conflicts: Corrections that contradict each other.
        assessment: Answers without and with the book; None for a book without corrections.
    """

    results: tuple[Checked, ...]
    conflicts: tuple[SharedQuestion, ...]
    assessment: Assessment | None

    @property
    def holds(self) -> bool:
        """Return whether every fact is the answer, and no correction contradicts another."""
        return not self.conflicts and all(one.verdict.holds for one in self.results)

    @property
    def changed(self) -> tuple[Checked, ...]:
        """Return the corrections whose answers are others than before."""
        return tuple(one for one in self.results if one.changed)

    def to_json(self) -> dict[str, object]:
        """Return plain dictionaries and lists."""
        return {
            "holds": self.holds,
            "corrections": [
                {
                    "id": one.correction.id,
                    "number": one.correction.number,
                    "label": one.correction.label,
                    "holds": one.verdict.holds,
                    "changed": one.changed,
                    "before": one.correction.verdict.to_json(),
                    "verdict": one.verdict.to_json(),
                }
                for one in self.results
            ],
            "conflicts": [one.describe() for one in self.conflicts],
        }


@dataclass(frozen=True)
class BookStatus:
    """State of a book without asking a model anything.

    Attributes:
        base_name: Name of the model it corrects.
        base_digest: Its digest.
        corrections: How many there are.
        facts: How many facts they hold.
        without_patch: Corrections that have no patch: they hold on this base, or none took.
        failing: Corrections that did not hold when they were last asked.
        disturbed: Corrections made on top of others than those that are before them now.
        undone: How many were taken out.
        is_checked: Whether all were asked since the book last changed.
        conflicts: Corrections that contradict each other.
        problems: Files that are missing or damaged, in words.
        fits: Whether the model given is the base; None where none was given.
    """

    base_name: str
    base_digest: str
    corrections: int
    facts: int
    without_patch: tuple[str, ...]
    failing: tuple[str, ...]
    disturbed: tuple[str, ...]
    undone: int
    is_checked: bool
    conflicts: tuple[str, ...]
    problems: tuple[str, ...]
    fits: bool | None = None

    @property
    def is_sound(self) -> bool:
        """Return whether no file is damaged, nothing contradicts, and the model is the base."""
        return not (self.problems or self.conflicts) and self.fits is not False

    def to_json(self) -> dict[str, object]:
        """Return plain dictionaries and lists."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
        }


def check_corrections(
    folder: BookFolder, lm: LanguageModel, *, chat: bool | None = None, force: bool = False
) -> BookCheck:
    """Ask every correction of a book again, with all of them applied; see `Book.check`."""
    if not force:
        require_base_of(folder, lm)
    corrections, state = folder.corrections, folder.state
    facts = [add_related_prompts(lm, fact) for one in corrections for fact in one.facts]
    results: list[Checked] = []
    assessment = None
    if facts:
        patch = sum_patches(folder, corrections)
        assessment = measure(lm, patch, facts, chat=chat, force=force)
        first = 0
        for one in corrections:
            verdict = judge(assessment, first, len(one.facts))
            verdict = verdict.model_copy(update={"guard": one.verdict.guard})
            results.append(Checked(one, verdict))
            first += len(one.facts)
    if not force:
        folder.note_verdicts(results, state)
    return BookCheck(tuple(results), tuple(find_conflicts(corrections)), assessment)


def describe_status(folder: BookFolder, lm: LanguageModel | None = None) -> BookStatus:
    """Return the state of a book; every file is read and checked."""
    corrections = folder.corrections
    problems: list[str] = []
    for one in corrections:
        try:
            read_patch(folder, one)
        except CorrigendaError as error:
            problems.append(f"{error.message} ({error.where})")
    base = folder.base
    return BookStatus(
        base_name=base.name,
        base_digest=base.digest,
        corrections=len(corrections),
        facts=sum(len(one.facts) for one in corrections),
        without_patch=_names([one for one in corrections if not one.patch]),
        failing=_names([one for one in corrections if not one.verdict.holds]),
        disturbed=_names(list_disturbed(list_with_patches(corrections))),
        undone=len(folder.undone),
        is_checked=folder.is_checked,
        conflicts=tuple(one.describe() for one in find_conflicts(corrections)),
        problems=tuple(problems),
        fits=None if lm is None else ledger_of(lm).base(lm) == base.digest,
    )


def _names(corrections: list[Correction]) -> tuple[str, ...]:
    return tuple(one.name for one in corrections)
