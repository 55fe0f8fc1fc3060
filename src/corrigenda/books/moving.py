"""All corrections of a book made again on another base model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from corrigenda.books.conflicts import QuestionIndex
from corrigenda.books.folder import BookFolder
from corrigenda.books.making import ActiveBook, Attempt, BookEditor, Refused, commit, try_facts
from corrigenda.books.patches import require_base_of
from corrigenda.books.records import FAILED, Correction, Verdict
from corrigenda.catalogue import build_editor
from corrigenda.errors import BadConfig, CorrigendaError
from corrigenda.methods.registry import METHODS

if TYPE_CHECKING:
    from corrigenda.editor import Editor, State
    from corrigenda.lm.model import LanguageModel
    from corrigenda.progress import Progress


@dataclass(frozen=True)
class Moved:
    """What a move did with each correction of the old book; nothing is dropped.

    Attributes:
        made: Corrections that were made again.
        held: Those that the new base states already; they are in the new book, without a patch.
        failed: Those that no patch made true; they are in the new book, without a patch, and
            `check` asks them.
        present: Those that the new book had from an earlier move.
    """

    made: tuple[Correction, ...] = ()
    held: tuple[Correction, ...] = ()
    failed: tuple[Refused, ...] = ()
    present: tuple[Correction, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return plain dictionaries and lists."""
        return {
            "made": [one.label for one in self.made],
            "held": [one.label for one in self.held],
            "failed": [
                {"facts": [fact.prompt for fact in one.facts], "reason": one.reason}
                for one in self.failed
            ],
            "present": [one.label for one in self.present],
        }


class EditorsAgain:
    """Editors of corrections for another base, each fitted once.

    On a base of the same shape, the next release of a model, a correction is made with the settings
    that are recorded; on another with the preset of its method for that model.
    """

    def __init__(
        self,
        old: BookFolder,
        lm: LanguageModel,
        *,
        editor: Editor | None,
        same_shape: bool,
        chat: bool | None,
        progress: Progress | bool | None,
    ) -> None:
        """Prepare for a model; with `editor` every correction is made with this one."""
        self._old, self._lm, self._editor = old, lm, editor
        self._same_shape, self._chat, self._progress = same_shape, chat, progress
        self._states: dict[str, State | None] = {}

    def of(self, correction: Correction) -> BookEditor:
        """Return the editor with which a correction is made again.

        Raises:
            UnknownMethod (CG501): its method is not installed.
            CorrigendaError: its state cannot be fitted on this model.
        """
        editor = self._editor or self._build(correction)
        key = f"{editor.name} {editor.model_dump_json()}"
        if key not in self._states:
            progress = self._progress if callable(self._progress) else None
            self._states[key] = editor.fit(self._lm, None, progress=progress)
        return BookEditor(editor, self._states[key], self._chat, self._progress)

    def _build(self, correction: Correction) -> Editor:
        if self._same_shape:
            try:
                return METHODS.get(correction.method)(**correction.settings)
            except BadConfig:
                # Settings of a patch that was made elsewhere need not be those of the method.
                pass
        return build_editor(self._lm, correction.method)


def move_corrections(
    old: BookFolder, new: BookFolder, lm: LanguageModel, editors: EditorsAgain
) -> Moved:
    """Make the corrections of a book again, in order, on top of each other; see `Book.move`."""
    require_base_of(new, lm)
    found = {name: [] for name in ("made", "held", "failed", "present")}
    known = {one.source: one for one in new.corrections if one.source}
    index = QuestionIndex(new.corrections)
    with ActiveBook(new, lm) as active:
        for one in old.corrections:
            if one.id in known or index.find(one.facts):
                found["present"].append(one)
                continue
            attempt = _try_again(active, lm, one, editors)
            made = dataclasses.replace(attempt.correction, source=one.id)
            added = commit(new, made, attempt.patch)
            if attempt.patch is not None:
                active.add(added, attempt.patch)
                found["made"].append(added)
            elif attempt.reason:
                found["failed"].append(Refused(one.facts, attempt.reason))
            else:
                found["held"].append(added)
    return Moved(**{name: tuple(several) for name, several in found.items()})


def _try_again(
    active: ActiveBook, lm: LanguageModel, correction: Correction, editors: EditorsAgain
) -> Attempt:
    """Return one try with the method of a correction; one that is not installed is the reason."""
    try:
        how = editors.of(correction)
    except CorrigendaError as error:
        failed = Verdict(outcomes=(FAILED,) * len(correction.facts))
        kept = dataclasses.replace(correction, patch="", made_on="", verdict=failed)
        return Attempt(kept, None, str(error.message))
    return try_facts(active, lm, correction.facts, how)
