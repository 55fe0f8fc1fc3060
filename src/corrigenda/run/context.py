"""What all steps of one unit share: the run, the model, and the answers of the unedited model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from corrigenda.lm.model import LanguageModel
from corrigenda.rows import Measurement
from corrigenda.run.health import make_text_query
from corrigenda.run.plan import Unit, UnitStep
from corrigenda.run.prober import ask
from corrigenda.run.queries import Answer, AnswerTable, Query
from corrigenda.run.row_builder import BaselineAnswers
from corrigenda.run.spec import RunSpec
from corrigenda.run.survival import SurvivalMeter
from corrigenda.run.tasks import RunItem


@dataclass(frozen=True, kw_only=True)
class UnitContext:
    """What is the same for all steps of a unit.

    Attributes:
        spec: The run.
        run: Id of the run.
        lm: The model, with whatever patches are active.
        base: Digest of the unedited model.
        unit: The unit.
        baseline: Answers of the unedited model.
        distributions: Distributions of the unedited model, for queries that compare them.
        abilities: Scores of the unedited model on tasks of the harness.
        texts: Texts whose perplexity is taken.
        items: Items of other tasks.
        survival: Asks facts after treatments of the weights; None without any.
        batch_tokens: Most tokens in one batch of queries; None takes what suits the device.
    """

    spec: RunSpec
    run: str
    lm: LanguageModel
    base: str
    unit: Unit
    baseline: BaselineAnswers
    distributions: AnswerTable
    abilities: tuple[Measurement, ...]
    texts: tuple[str, ...]
    items: tuple[RunItem, ...]
    survival: SurvivalMeter | None
    batch_tokens: int | None

    def ask(self, queries: Iterable[Query]) -> AnswerTable:
        """Ask the model as it is now."""
        return ask(self.lm, queries, batch_tokens=self.batch_tokens)

    def ask_texts(self) -> dict[Query, Answer]:
        """Return the answers to the texts whose perplexity is taken, of the model as it is now."""
        return self.ask(map(make_text_query, self.texts)).given

    def label(self, step: UnitStep) -> str:
        """Return the name of a step in measurements."""
        return f"{self.unit.label}, {step.end}" if self.unit.in_sequence else self.unit.label

    def num_edits(self, step: UnitStep) -> int:
        """Return the number of edits in force after a step; 0 outside a sequence."""
        return step.end if self.unit.in_sequence else 0
