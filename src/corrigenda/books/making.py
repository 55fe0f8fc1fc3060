"""Corrections made on top of a book, one by one or together, and patches that are added to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pydantic import JsonValue

from corrigenda.api import correct
from corrigenda.assessment import measure
from corrigenda.books.conflicts import QuestionIndex, SharedQuestion
from corrigenda.books.folder import BookFolder
from corrigenda.books.patches import (
    find_made_on,
    list_with_patches,
    make_independent,
    require_base_of,
    require_value,
    sum_patches,
)
from corrigenda.books.records import FAILED, Correction, Verdict, state_of
from corrigenda.books.verdicts import judge
from corrigenda.engines.pocket_world import add_related_prompts, subject_of
from corrigenda.errors import AlreadyTrue, BadConfig, ConflictingCorrections, CorrigendaError
from corrigenda.facts import Fact
from corrigenda.patch.header import Header
from corrigenda.patch.weights import WeightPatch

if TYPE_CHECKING:
    from corrigenda.assessment import Assessment
    from corrigenda.editor import Editor, State
    from corrigenda.lm.model import LanguageModel
    from corrigenda.patch import Patch, PatchValue
    from corrigenda.progress import Progress


class Refused(NamedTuple):
    """Facts that were not added, and why."""

    facts: tuple[Fact, ...]
    reason: str


@dataclass(frozen=True)
class Additions:
    """What `Book.make` did with each fact; nothing is dropped.

    Attributes:
        added: Corrections that are now in the book.
        held: Facts that the model with the book states already.
        present: Facts that the book has already.
        failed: Facts that no patch made true, or whose edit was refused.
        conflicts: Facts that contradict a correction of the book.
        notices: Decisions taken for the caller, such as a subject found.
    """

    added: tuple[Correction, ...] = ()
    held: tuple[Fact, ...] = ()
    present: tuple[Fact, ...] = ()
    failed: tuple[Refused, ...] = ()
    conflicts: tuple[Refused, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def succeeded(self) -> bool:
        """Return whether every fact holds now."""
        return not (self.failed or self.conflicts)


class BookEditor(NamedTuple):
    """How corrections are made.

    Attributes:
        editor: The editor.
        state: Its state, fitted on the model without patches.
        chat: Whether to edit and ask in the chat form; None where there is a template.
        progress: A callback with (stage, done, total), or False for no progress bar.
    """

    editor: Editor
    state: State | None
    chat: bool | None = None
    progress: Progress | bool | None = None


class Attempt(NamedTuple):
    """One try to make facts true on a model with the book's patches active.

    Attributes:
        correction: What would be added; its patch is empty where none is needed or none took.
        patch: The patch; None where none is needed or none took.
        reason: Why the facts are not true; empty where they are.
        notices: Decisions taken.
    """

    correction: Correction
    patch: PatchValue | None
    reason: str
    notices: tuple[str, ...] = ()


class ActiveBook(ExitStack):
    """The patches of a book on a model, with those that are added meanwhile on top.

    Attributes:
        below: Corrections whose patches are active.
    """

    def __init__(self, folder: BookFolder, lm: LanguageModel) -> None:
        """Put the book on a model; leaving takes everything off."""
        super().__init__()
        self._folder, self._lm = folder, lm
        corrections = folder.corrections
        self.below = list_with_patches(corrections)
        self.enter_context(sum_patches(folder, corrections).apply(lm))

    @property
    def made_on(self) -> str:
        """State of the patches that are active; empty for none."""
        return state_of(one.id for one in self.below)

    def add(self, correction: Correction, patch: PatchValue) -> None:
        """Put the patch of an added correction on top."""
        self.enter_context(patch.apply(self._lm))
        self.below.append(correction)


def try_facts(
    active: ActiveBook, lm: LanguageModel, facts: Sequence[Fact], how: BookEditor
) -> Attempt:
    """Make facts true on top of what is active; the model is left as it was.

    Errors of the edit are the reason of the attempt and are not raised.
    """
    blank = Correction(
        tuple(facts),
        how.editor.name,
        plain(how.editor.model_dump(mode="json")),
        verdict=Verdict(outcomes=(FAILED,) * len(facts)),
    )
    try:
        own, subjects = _find_subjects(lm, facts, how.editor)
        found: Assessment = correct(
            lm, own, how.editor, state=how.state, chat=how.chat, progress=how.progress
        )
    except CorrigendaError as error:
        return Attempt(blank, None, str(error.message))
    notices = (*subjects, *found.notices)
    blank = dataclasses.replace(
        blank, facts=tuple(own), settings=plain(found.config), verdict=judge(found)
    )
    if found.is_no_op:
        return Attempt(blank, None, "", notices)
    if not found.succeeded:
        answers = [
            one.after
            for one in found.answers
            if one.role == "prompt" and not one.chat and not one.is_wanted(own[one.fact])
        ]
        said = ", ".join(f'"{text}"' for text in answers)
        return Attempt(blank, None, f"after the edit the model says {said}", notices)
    patch = make_independent(require_value(found.patch))
    made = dataclasses.replace(blank, patch=patch.digest(), made_on=active.made_on)
    return Attempt(made, patch, "", notices)


def _find_subjects(
    lm: LanguageModel, facts: Sequence[Fact], editor: Editor
) -> tuple[list[Fact], list[str]]:
    """Return facts with the subjects that an editor needs, and notices of those found."""
    complete: list[Fact] = []
    notices: list[str] = []
    for fact in facts:
        found = fact
        if fact.subject is None and editor.requires.subject:
            subject = subject_of(lm, fact.prompt, where=fact.name)
            notices.append(f'subject of {fact.label}: "{subject}" (found)')
            found = dataclasses.replace(fact, subject=subject)
        complete.append(found)
    return complete, notices


def make_corrections(
    folder: BookFolder,
    lm: LanguageModel,
    facts: Sequence[Fact],
    how: BookEditor,
    *,
    together: bool = False,
) -> Additions:
    """Make facts true on top of a book, and add what took; see `Book.make`."""
    require_base_of(folder, lm)
    added: list[Correction] = []
    held: list[Fact] = []
    failed: list[Refused] = []
    conflicts: list[Refused] = []
    notices: dict[str, None] = {}
    wanted, present = _sort_out(folder, facts, conflicts)
    groups = [tuple(wanted)] if together else [(fact,) for fact in wanted]
    with ActiveBook(folder, lm) as active:
        for group in filter(None, groups):
            attempt = try_facts(active, lm, group, how)
            notices |= dict.fromkeys(
                line for line in attempt.notices if not line.startswith(AlreadyTrue.code)
            )
            if attempt.reason:
                failed.append(Refused(group, attempt.reason))
            elif attempt.patch is None:
                held += group
            else:
                try:
                    correction = commit(folder, attempt.correction, attempt.patch)
                except ConflictingCorrections as error:
                    conflicts.append(Refused(group, error.message))
                    continue
                active.add(correction, attempt.patch)
                added.append(correction)
    return Additions(
        *(tuple(added), tuple(held), tuple(present), tuple(failed), tuple(conflicts)),
        notices=tuple(notices),
    )


def add_patch(
    folder: BookFolder,
    lm: LanguageModel,
    facts: Sequence[Fact],
    patch: Patch | None,
    settings: Mapping[str, object] | None,
    verdict: Verdict | Assessment | None,
) -> Correction:
    """Add a patch that was made already; see `Book.add`."""
    require_base_of(folder, lm)
    if not facts:
        raise BadConfig("a correction needs a fact.", hint="Give what the patch makes true.")
    header = Header(method="") if patch is None else patch.header
    own = None if patch is None or patch.is_empty else require_value(patch)
    made_on = "" if own is None else find_made_on(folder, own)
    free = None if own is None else make_independent(own)
    correction = Correction(
        tuple(facts),
        header.method,
        plain(header.config if settings is None else settings),
        "" if free is None else free.digest(),
        made_on,
    )
    folder.require_new(correction)
    if not isinstance(verdict, Verdict):
        if verdict is None:
            with ActiveBook(folder, lm):
                related = [add_related_prompts(lm, fact) for fact in facts]
                verdict = measure(lm, free or WeightPatch({}, header), related)
        verdict = judge(verdict)
    return commit(folder, dataclasses.replace(correction, verdict=verdict), free)


def commit(folder: BookFolder, correction: Correction, patch: PatchValue | None) -> Correction:
    """Write a correction and its patch into a book.

    Raises:
        ConflictingCorrections (CG803): another process added one that repeats or contradicts it.
        WriteFailed (CG601): it cannot be written; the book is as it was.
    """
    with folder.writing() as lock:
        folder.require_new(correction)
        return folder.put(correction, None if patch is None else patch.save, lock)


def plain(settings: Mapping[str, object]) -> dict[str, JsonValue]:
    """Return settings as JSON holds them."""
    return Header(method="", config=dict(settings)).config  # type: ignore[arg-type]  # made plain


def _sort_out(
    folder: BookFolder, facts: Sequence[Fact], conflicts: list[Refused]
) -> tuple[list[Fact], list[Fact]]:
    """Return the facts that are new, and those that the book has; note those that contradict it."""
    index = QuestionIndex(folder.corrections)
    wanted: list[Fact] = []
    present: list[Fact] = []
    for fact in facts:
        shared: list[SharedQuestion] = index.find([fact])
        against = [one.describe() for one in shared if not one.agrees]
        if against:
            conflicts.append(Refused((fact,), "; ".join(against)))
        elif shared:
            present.append(fact)
        else:
            wanted.append(fact)
            index.add(Correction((fact,)))
    return wanted, present
