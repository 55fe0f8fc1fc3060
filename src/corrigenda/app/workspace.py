"""The model of an app and the corrections that are active on it; one work at a time uses it."""

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
from corrigenda.errors import BadConfig
from corrigenda.exports.forms import Form
from corrigenda.facts import Fact
from corrigenda.guarding.damage import GuardVerdict
from corrigenda.lm.chat import has_chat_template
from corrigenda.lm.wrapping import require_lm
from corrigenda.patch.compare import add_up
from corrigenda.settings import parse_choice

if TYPE_CHECKING:
    from corrigenda.analysis.causal_trace import CausalTrace
    from corrigenda.api import Reply
    from corrigenda.assessment import Assessment
    from corrigenda.guarding.guard import GuardReport
    from corrigenda.lm.model import LanguageModel
    from corrigenda.patch import Applied

Value = TypeVar("Value")


class DownloadForm(StrEnum):
    """Form in which the active corrections are downloaded."""

    PATCH = "patch"
    """One file that `corrigenda` reads."""
    PEFT = "peft"
    """A LoRA adapter for `peft`, vLLM and SGLang, as a ZIP archive."""
    GGUF_ADAPTER = "gguf-adapter"
    """A LoRA adapter for llama.cpp, as a ZIP archive."""


@dataclass(frozen=True)
class AppCorrection:
    """A correction that was made in the app.

    Attributes:
        number: Its number in this app, from 1.
        assessment: What was measured.
        before: Reply to the prompt without it.
        after: Reply to the prompt with it.
        guarded: What the guard found; None where it was not asked.
        applied: The handle of its patch; None where the guard refused it, or nothing changes.
    """

    number: int
    assessment: Assessment
    before: Reply
    after: Reply
    guarded: GuardReport | None
    applied: Applied | None

    @property
    def label(self) -> str:
        """Return the number with the fact."""
        facts = "; ".join(f"{fact.prompt} {fact.target}" for fact in self.assessment.facts)
        return f"{self.number}: {facts}"


class Workspace:
    """A model with active corrections, and a folder for what is downloaded.

    Everything that uses the model goes through `start`, so that only one work does at a time.
    """

    def __init__(self, lm: LanguageModel) -> None:
        """Take a model.

        Args:
            lm: The model; `close` leaves it as it is now.
        """
        self.lm = require_lm(lm)
        self._lock = threading.Lock()
        self._active: list[AppCorrection] = []
        self._made = 0
        self._task: BackgroundTask[object] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="corrigenda-app-")

    @property
    def downloads(self) -> Path:
        """Folder of what was exported; removed at the end."""
        return Path(self._folder.name)

    @property
    def corrections(self) -> tuple[AppCorrection, ...]:
        """Active corrections, in the order they were made."""
        return tuple(self._active)

    @property
    def has_chat(self) -> bool:
        """Whether the model has a chat template."""
        return has_chat_template(self.lm.tokenizer)

    def start(self, work: Callable[[], Value]) -> BackgroundTask[Value]:
        """Run work that uses the model, when no other does."""
        task = BackgroundTask(work, self._lock)
        self._task = task
        return task

    def cancel(self) -> None:
        """Cancel the work that was started last."""
        if self._task is not None:
            self._task.cancel()

    def correct(
        self, fact: Fact, method: str, *, layer: int | None = None, guard: bool = True
    ) -> AppCorrection:
        """Make a correction and keep it active, unless the guard refuses it.

        Args:
            fact: What should become true.
            method: Name of the method.
            layer: Block to edit; the preset's or one by depth if None.
            guard: Whether to measure what must not change; see `corrigenda.guard`.

        Raises:
            CorrigendaError: as `corrigenda.correct`; the model is as it was.
        """
        before = corrigenda.ask(self.lm, fact.prompt)
        assessment = corrigenda.correct(self.lm, fact, method, layer=layer)
        patch = assessment.patch
        guarded = None
        if guard and not patch.is_empty:
            guarded = corrigenda.guard(self.lm, patch, assessment.facts)
        applied = patch.apply(self.lm)
        try:
            after = corrigenda.ask(self.lm, fact.prompt)
        except BaseException:
            applied.revert()
            raise
        refused = guarded is not None and guarded.verdict is GuardVerdict.REFUSED
        keep = not (refused or patch.is_empty)
        if not keep:
            applied.revert()
        self._made += 1
        made = AppCorrection(
            self._made, assessment, before, after, guarded, applied if keep else None
        )
        if keep:
            self._active.append(made)
        return made

    def undo(self, number: int) -> AppCorrection:
        """Take an active correction off, bit for bit.

        Raises:
            BadConfig (CG502): none has this number.
        """
        for correction in self._active:
            if correction.number == number:
                _revert(correction)
                self._active.remove(correction)
                return correction
        raise BadConfig(f"no correction {number} is active.", hint="Choose one of the list.")

    def export(self, form: DownloadForm | str) -> Path:
        """Write the active corrections as one file for download; see `corrigenda.export`.

        Raises:
            NotExportable (CG405): they have no such form.
            BadConfig (CG502): there are none.
        """
        form = parse_choice(DownloadForm, form)
        if not self._active:
            raise BadConfig("no correction is active.", hint="Make one first.")
        patches = [one.assessment.patch for one in self._active]
        name = f"corrections-{self._made}-{form}"
        if form is DownloadForm.PATCH:
            return add_up(patches).save(self.downloads / f"{name}.safetensors")
        folder = self.downloads / name
        shutil.rmtree(folder, ignore_errors=True)
        self._take_off()
        try:
            corrigenda.export(patches, self.lm, folder, to=Form(str(form)))
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
        """Take all corrections off and remove what was exported."""
        self.cancel()
        with self._lock:
            self._take_off()
            self._active.clear()
        self._folder.cleanup()

    def _take_off(self) -> None:
        for correction in reversed(self._active):
            _revert(correction)

    def _put_on(self) -> None:
        self._active = [
            replace(one, applied=one.assessment.patch.apply(self.lm, force=True))
            for one in self._active
        ]


def _revert(correction: AppCorrection) -> None:
    assert correction.applied is not None, "it is active"
    correction.applied.revert()
