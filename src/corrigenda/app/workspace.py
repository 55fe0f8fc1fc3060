"""The model of an app with a book of corrections on it; one work at a time uses it."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import corrigenda
from corrigenda.analysis.injection import LayerInjections, measure_injection
from corrigenda.app.tasks import BackgroundTask
from corrigenda.books.book import Book
from corrigenda.books.verdicts import judge
from corrigenda.errors import BadConfig
from corrigenda.facts import Fact
from corrigenda.guarding.damage import GuardVerdict
from corrigenda.lm.chat import has_chat_template
from corrigenda.lm.wrapping import require_lm
from corrigenda.settings import parse_choice

if TYPE_CHECKING:
    from corrigenda.analysis.causal_trace import CausalTrace
    from corrigenda.api import Reply
    from corrigenda.assessment import Assessment
    from corrigenda.books.checking import BookCheck
    from corrigenda.books.records import Correction
    from corrigenda.guarding.guard import GuardReport
    from corrigenda.lm.model import LanguageModel
    from corrigenda.patch import Applied

Value = TypeVar("Value")


class DownloadForm(StrEnum):
    """Form in which the corrections on the model are downloaded."""

    PATCH = "patch"
    """One file that `corrigenda` reads."""
    PEFT = "peft"
    """A LoRA adapter for `peft`, vLLM and SGLang, as a ZIP archive."""
    GGUF_ADAPTER = "gguf-adapter"
    """A LoRA adapter for llama.cpp, as a ZIP archive."""


@dataclass(frozen=True)
class CorrectionTrial:
    """What came of a correction.

    Attributes:
        assessment: What was measured.
        before: Reply to the prompt without it.
        after: Reply to the prompt with it.
        guarded: What the guard found; None where it was not asked.
        kept: The correction in the book; None where it did not take, was refused by the guard, or
            nothing had to be changed.
    """

    assessment: Assessment
    before: Reply
    after: Reply
    guarded: GuardReport | None
    kept: Correction | None

    @property
    def is_refused(self) -> bool:
        """Whether the guard refused it."""
        return self.guarded is not None and self.guarded.verdict is GuardVerdict.REFUSED


class Workspace:
    """A model with the corrections of a book on it, and a folder for what is downloaded.

    Everything that uses the model goes through `start`, so that only one work does at a time, with
    the corrections on the model that are then in the book.
    """

    def __init__(self, lm: LanguageModel, book: Book | None = None) -> None:
        """Take a model and a book.

        Args:
            lm: The model; `close` leaves it as it is now.
            book: Its book; if None, a new one that is removed at the end.

        Raises:
            WrongBase (CG401): the model is not the base of the book.
            DamagedBook (CG802): a patch is missing, damaged, or another one.
        """
        self.lm = require_lm(lm)
        self.is_kept = book is not None
        self._folder = tempfile.TemporaryDirectory(prefix="corrigenda-app-")
        self.book = Book.new(Path(self._folder.name) / "book", lm) if book is None else book
        self._lock = threading.Lock()
        self._cancel: Callable[[], None] | None = None
        self._applied: Applied | None = None
        self._state: str | None = None
        self.book.apply(lm).revert()
        self._put_on()

    @property
    def downloads(self) -> Path:
        """Folder of what was exported; removed at the end."""
        path = Path(self._folder.name) / "downloads"
        path.mkdir(exist_ok=True)
        return path

    @property
    def has_chat(self) -> bool:
        """Whether the model has a chat template."""
        return has_chat_template(self.lm.tokenizer)

    def start(self, work: Callable[[], Value]) -> BackgroundTask[Value]:
        """Run work that uses the model, when no other does."""

        def run() -> Value:
            self._put_on()
            return work()

        task = BackgroundTask(run, self._lock)
        self._cancel = task.cancel
        return task.start()

    def cancel(self) -> None:
        """Cancel the work that was started last."""
        if self._cancel is not None:
            self._cancel()

    def correct(
        self, fact: Fact, method: str, *, layer: int | None = None, guard: bool = True
    ) -> CorrectionTrial:
        """Make a correction, and keep it in the book where it took and the guard lets it.

        Args:
            fact: What should become true.
            method: Name of the method.
            layer: Block to edit; the preset's or one by depth if None.
            guard: Whether to measure what must not change; see `corrigenda.guard`.

        Raises:
            ConflictingCorrections (CG803): the book answers the question already.
            CorrigendaError: as `corrigenda.correct`; the model is as it was.
        """
        before = corrigenda.ask(self.lm, fact.prompt)
        assessment = corrigenda.correct(self.lm, fact, method, layer=layer)
        patch = assessment.patch
        if patch.is_empty:
            return CorrectionTrial(assessment, before, before, None, None)
        guarded = corrigenda.guard(self.lm, patch, assessment.facts) if guard else None
        with patch.apply(self.lm):
            after = corrigenda.ask(self.lm, fact.prompt)
        trial = CorrectionTrial(assessment, before, after, guarded, None)
        if trial.is_refused or not assessment.succeeded:
            return trial
        verdict = judge(assessment).model_copy(
            update={"guard": "" if guarded is None else str(guarded.verdict)}
        )
        kept = self.book.add(self.lm, assessment.facts, patch, assessment.config, verdict=verdict)
        self._put_on()
        return replace(trial, kept=kept)

    def undo(self, name: str) -> Correction:
        """Take a correction out of the book and off the model, bit for bit.

        Raises:
            UnknownCorrection (CG804): there is none of this id.
        """
        correction = self.book.undo(name)
        self._put_on()
        return correction

    def check(self) -> BookCheck:
        """Ask all corrections of the book again; see `Book.check`."""
        self._take_off()
        try:
            return self.book.check(self.lm)
        finally:
            self._put_on()

    def export(self, form: DownloadForm | str) -> Path:
        """Write the corrections on the model as one file for download; see `corrigenda.export`.

        Raises:
            NotExportable (CG405): they have no such form.
            BadConfig (CG502): there are none.
        """
        form = parse_choice(DownloadForm, form)
        whole = self.book.patch()
        if whole.is_empty:
            raise BadConfig("no correction is on the model.", hint="Make one first.")
        name = f"corrections-{self.book.state}-{form}"
        if form is DownloadForm.PATCH:
            return whole.save(self.downloads / f"{name}.safetensors")
        folder = self.downloads / name
        shutil.rmtree(folder, ignore_errors=True)
        self._take_off()
        try:
            self.book.export(self.lm, folder, to=str(form))
        finally:
            self._put_on()
        return Path(shutil.make_archive(str(folder), "zip", folder))

    def trace(
        self, prompt: str, subject: str | None, answer: str | None, *, samples: int
    ) -> CausalTrace:
        """Trace a fact; see `corrigenda.trace`."""
        kinds = ("state", "mlp", "attention")
        return corrigenda.trace(
            self.lm, prompt, subject, answer=answer, kinds=kinds, samples=samples
        )

    def inject(self, fact: Fact) -> LayerInjections:
        """Measure at which blocks a vector changes the answer."""
        return measure_injection(self.lm, [fact])

    def close(self) -> None:
        """Take all corrections off the model and remove what was exported."""
        self.cancel()
        with self._lock:
            self._take_off()
        self._folder.cleanup()

    def _put_on(self) -> None:
        """Let the model have the corrections that are in the book now."""
        state = self.book.state
        if state == self._state:
            return
        self._take_off()
        if any(one.patch for one in self.book.corrections):
            self._applied = self.book.apply(self.lm)
        self._state = state

    def _take_off(self) -> None:
        if self._applied is not None:
            self._applied.revert()
        self._applied = self._state = None
