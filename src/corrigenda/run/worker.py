"""Units of one run on one model: edited, asked, measured, and the model restored."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence

from corrigenda.engines.chat_forms import add_chat_forms
from corrigenda.errors import NotExportable, WrongBase
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.patch.protocols import Patch
from corrigenda.patch.weights import WeightPatch
from corrigenda.progress import Progress
from corrigenda.rows import Measurement
from corrigenda.run import costs, health, plan, tasks
from corrigenda.run.context import UnitContext
from corrigenda.run.known_facts import name_exam
from corrigenda.run.plan import QueryBlock, Unit
from corrigenda.run.prober import ask
from corrigenda.run.queries import Answer, AnswerTable
from corrigenda.run.row_builder import BaselineAnswers
from corrigenda.run.spec import RunSpec
from corrigenda.run.store import RunPart
from corrigenda.run.survival import SurvivalMeter
from corrigenda.run.unit_edits import UnitEdits
from corrigenda.run.unit_run import UnitRun
from corrigenda.state import State
from corrigenda.transforms.registry import parse_transforms


class Worker:
    """Does units of one run, on one model, in any order.

    The method is fitted when the first unit needs it. An error in a unit is recorded in its rows.
    """

    def __init__(
        self,
        spec: RunSpec,
        lm: LanguageModel,
        run: str,
        *,
        base: str | None = None,
        progress: Progress | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        """Bind a worker to a run and a model.

        Args:
            spec: The run.
            lm: The model, without patches.
            run: Id of the run, for its rows.
            base: Digest the model should have.
            progress: Called with (stage, done, total) while the method is fitted.
            batch_tokens: Most tokens in one batch of queries; None takes what suits the device.

        Raises:
            WrongBase (CG401): the model has another digest.
            UnknownMethod (CG501), BadConfig (CG502): as `RunSpec.build_editor`.
        """
        self.spec, self.lm, self.run_id = spec, lm, run
        self.base = lm.digest()
        if base is not None and base != self.base:
            raise WrongBase(
                f"{lm.name} has other weights here than where the run was planned.",
                hint="Give every worker the same files.",
            )
        self.editor = spec.build_editor()
        self.batch_tokens = batch_tokens
        self._texts = health.read_texts(spec.health)
        self._items = tasks.items_of(spec.health)
        self._survival = SurvivalMeter(lm, spec.after.forms) if spec.after.forms else None
        self._transforms = parse_transforms(spec.editor.transforms)
        self._progress = progress
        self._state: State | None = None
        self._fit_seconds = 0.0
        self._abilities: list[Measurement] | None = None

    def ask_unedited(self, block: QueryBlock) -> list[Answer]:
        """Ask the unedited model."""
        given = ask(self.lm, block, distributions=False, batch_tokens=self.batch_tokens).given
        return [given[query] for query in block]

    def run_unit(
        self, unit: Unit, baseline: BaselineAnswers, done: Collection[str] = ()
    ) -> Generator[RunPart, None, None]:
        """Do a unit; the model is restored when all is done, or the generator is closed.

        Args:
            unit: What to do.
            baseline: Answers of the unedited model to all queries of its cases, and of health.
            done: Parts that are recorded already; of a sequence, their edits are made again.
        """
        missing = [step.number for step in unit.steps if unit.part(step) not in done]
        if not missing:
            return
        context = self._build_context(unit, baseline)
        state, fit_error = self._fit()
        edits = UnitEdits(context, self.make_patches, state, fit_error)
        with UnitRun(context, edits) as work:
            for step in unit.steps:
                if step.number > missing[-1]:
                    break
                if step.number in missing:
                    yield work.run_step(step, self._take_fit_seconds() if step.number == 0 else 0.0)
                else:
                    work.repeat_step(step)

    def make_patches(
        self, facts: Sequence[Fact], state: State | None, *, one_by_one: bool
    ) -> Generator[tuple[Patch, State | None], None, None]:
        """Make the patches of some facts, each to be applied before the next is made.

        Args:
            facts: The facts.
            state: State after the fit or the edit before.
            one_by_one: Whether a method that takes one fact at a time gets them so.
        """
        portions = [facts]
        if one_by_one and not self.editor.supports.batch:
            portions = [[fact] for fact in facts]
        for portion in portions:
            made = self.editor.edit(self.lm, add_chat_forms(self.lm, self.editor, portion), state)
            patch, state = made.patch, made.state
            for transform in self._transforms:
                if not isinstance(patch, WeightPatch):
                    raise NotExportable(
                        "only a patch of weights can be transformed.", where=patch.header.method
                    )
                patch = transform(patch, self.lm)
            yield patch, state

    def _fit(self) -> tuple[State | None, Exception | None]:
        """Return the state after the fit, or why there is none."""
        if self._state is None:
            begin = costs.read_clock(self.lm.device)
            try:
                corpus = None
                if self.spec.train is not None and self.editor.requires.training_set:
                    corpus = plan.load_training_facts(name_exam(self.lm, self.spec.train))
                self._state = self.editor.fit(self.lm, corpus, progress=self._progress)
            except Exception as error:
                return None, error
            if self.editor.requires.moments or self.editor.requires.training_set:
                self._fit_seconds = costs.read_clock(self.lm.device) - begin
        return self._state, None

    def _take_fit_seconds(self) -> float:
        """Return the time of the fit, once."""
        seconds, self._fit_seconds = self._fit_seconds, 0.0
        return seconds

    def _build_context(self, unit: Unit, baseline: BaselineAnswers) -> UnitContext:
        if self._abilities is None:
            self._abilities = tasks.scores_before(
                self.lm, self.spec.health, self.base, self.batch_tokens
            )
        return UnitContext(
            spec=self.spec,
            run=self.run_id,
            lm=self.lm,
            base=self.base,
            unit=unit,
            baseline=baseline,
            distributions=self._ask_distributions(unit),
            abilities=tuple(self._abilities),
            texts=self._texts,
            items=self._items,
            survival=self._survival,
            batch_tokens=self.batch_tokens,
        )

    def _ask_distributions(self, unit: Unit) -> AnswerTable:
        """Return distributions of the unedited model for the queries that compare them."""
        queries = [
            query
            for case in unit.cases
            for query in plan.list_queries(self.spec, case)
            if query.divergence
        ]
        return ask(self.lm, queries) if queries else AnswerTable({}, {})
