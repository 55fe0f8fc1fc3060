"""One unit of work on one model: edit, apply, ask, take off. Nothing is written here."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator, Iterator, Sequence
from typing import NamedTuple

from corrigenda.cases import Case, Protocol
from corrigenda.editor import Editor
from corrigenda.errors import CorrigendaError, NotExportable, WrongBase
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.methods import presets
from corrigenda.methods.registry import METHODS
from corrigenda.patch.protocols import Patch
from corrigenda.patch.weights import WeightPatch
from corrigenda.progress import Progress
from corrigenda.rows import Measurement, Row, Stage
from corrigenda.run import costs, harness, health, plan, round_trip, tasks
from corrigenda.run.plan import Block, Step, Unit
from corrigenda.run.prober import Answer, Answers, ask, coded, question_of
from corrigenda.run.row_builder import (
    Asked,
    Before,
    Models,
    row_after,
    row_before,
    row_skipped,
)
from corrigenda.run.spec import RunSpec
from corrigenda.run.store import Part
from corrigenda.state import State
from corrigenda.transforms.registry import parse_all


def editor_of(spec: RunSpec) -> Editor:
    """The method of a run, with the preset for its model and its options on top.

    Raises:
        UnknownMethod (CG501): no such method.
        BadConfig (CG502): an option it does not have, or a value it cannot take.
    """
    kind = METHODS.get(spec.editor.name)
    options = presets.complete_options(spec.editor.name, spec.model, spec.editor.options)
    if "seed" in kind.model_fields and "seed" not in options:
        options["seed"] = spec.seed
    return kind(**options)


class Worker:
    """Does units of one run, on one model, in any order.

    The method is fitted when the first unit needs it. An error in a unit becomes rows that say so.
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
        """Get ready.

        Args:
            spec: The run.
            lm: The model, without patches.
            run: Id of the run, for its rows.
            base: Digest the model should have.
            progress: Called with (stage, done, total) while the method is fitted.
            batch_tokens: Most tokens in one batch of questions; None takes what suits the device.

        Raises:
            WrongBase (CG401): the model has another digest.
            UnknownMethod (CG501), BadConfig (CG502): as `editor_of`.
        """
        self.spec, self.lm, self.run_id = spec, lm, run
        self.base = lm.digest()
        if base is not None and base != self.base:
            raise WrongBase(
                f"{lm.name} has other weights here than where the run was planned.",
                hint="Give every worker the same files.",
            )
        self.editor = editor_of(spec)
        self.texts = health.texts_of(spec.health)
        self.items = tasks.items_of(spec.health)
        self.batch_tokens = batch_tokens
        self.fit_seconds = 0.0
        self._transforms = parse_all(spec.editor.transforms)
        self._progress = progress
        self._fitted: State | None = None
        self._abilities: list[Measurement] | None = None

    def before(self, block: Block) -> list[Answer]:
        """Ask the unedited model."""
        given = ask(self.lm, block, distributions=False, batch_tokens=self.batch_tokens).given
        return [given[question] for question in block]

    def work(
        self, unit: Unit, before: Before, done: Collection[str] = ()
    ) -> Generator[Part, None, None]:
        """Do a unit; the model is as it was when all is done, or the generator is closed.

        Args:
            unit: What to do.
            before: Answers of the unedited model to all questions of its cases, and of health.
            done: Parts that need not be recorded again; of a sequence, their edits are made.
        """
        missing = [step.number for step in unit.steps if unit.part(step) not in done]
        if not missing:
            return
        if self._abilities is None:
            self._abilities = harness.unedited(
                self.lm, self.spec.health, self.base, self.batch_tokens
            )
        abilities = self._abilities
        begin = _Begin(before, self._distributions(unit), abilities, *self._fit())
        with _Progress(self, unit, begin) as work:
            for step in unit.steps:
                if step.number <= missing[-1]:
                    recorded = step.number in missing
                    part = work.do(step, recorded=recorded)
                    if recorded:
                        yield part

    def edit(
        self, facts: Sequence[Fact], state: State | None, *, one_by_one: bool
    ) -> Generator[tuple[Patch, State | None], None, None]:
        """Make the patches after which facts hold, each to be applied before the next is made.

        Args:
            facts: The facts.
            state: What the fit or the edit before gave.
            one_by_one: Whether a method that takes one fact at a time gets them so.
        """
        portions = [facts]
        if one_by_one and not self.editor.supports.batch:
            portions = [[fact] for fact in facts]
        for portion in portions:
            made = self.editor.edit(self.lm, portion, state)
            patch, state = made.patch, made.state
            for transform in self._transforms:
                if not isinstance(patch, WeightPatch):
                    raise NotExportable(
                        "only a patch of weights can be transformed.", where=patch.header.method
                    )
                patch = transform(patch, self.lm)
            yield patch, state

    def _fit(self) -> tuple[State | None, Exception | None]:
        """The state to begin with, or why there is none."""
        if self._fitted is None:
            begin = costs.now(self.lm.device)
            try:
                corpus = None
                if self.spec.train is not None and self.editor.requires.training_set:
                    corpus = plan.training_facts(self.spec.train)
                self._fitted = self.editor.fit(self.lm, corpus, progress=self._progress)
            except Exception as error:
                return None, error
            if self.editor.requires.moments or self.editor.requires.training_set:
                self.fit_seconds = costs.now(self.lm.device) - begin
        return self._fitted, None

    def _distributions(self, unit: Unit) -> Answers:
        """Distributions of the unedited model for the questions that compare them."""
        questions = [
            one
            for case in unit.cases
            for one in plan.questions_of(self.spec, case)
            if one.divergence
        ]
        return ask(self.lm, questions) if questions else Answers({}, {})


class _Begin(NamedTuple):
    """What a unit begins with."""

    before: Before
    distributions: Answers
    abilities: list[Measurement]
    state: State | None
    broken: Exception | None


class _Progress:
    """A unit in progress: the patches that are active, the state, the edits that failed."""

    def __init__(self, worker: Worker, unit: Unit, begin: _Begin) -> None:
        self._worker, self._unit, self._begin = worker, unit, begin
        self._lm, self._run = worker.lm, worker.run_id
        self._active = contextlib.ExitStack()
        self._digests: list[str] = []
        self._state = begin.state
        self._texts_now: Before = begin.before
        self._rolled_back: dict[str, tuple[int, ...]] = {}
        self._checks: list[Measurement] = []
        self._errors: list[tuple[str, Exception]] = []
        self._failed: dict[str, str] = {}
        if begin.broken is not None:
            self._failed = {case.id: coded(begin.broken) for case in unit.cases}
            self._errors = [(unit.cases[0].id, begin.broken)]

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._active.close()

    def do(self, step: Step, *, recorded: bool) -> Part:
        """Make the edits of a step, and ask."""
        rows = [*self._unedited(step)] if recorded else []
        self._checks = []
        spent: list[costs.Cost] = []
        patches: list[Patch] = []
        ask_seconds = 0.0
        goes_back = recorded and all(map(round_trip.goes_back, step.cases))
        moved: list[float | None] = []
        last = max(len(case.edits) for case in step.cases)
        for number in range(1, last + 1):
            patches += self._edit(step, number, spent)
            if goes_back:
                moved.append(round_trip.distance(self._lm))
            if recorded:
                start = costs.now(self._lm.device)
                rows += self._ask([*self._due(step, number, is_last=number == last)])
                ask_seconds += costs.now(self._lm.device) - start
        measured: list[Measurement] = []
        if recorded:
            measured = self._measured(step, spent, patches, ask_seconds)
            if goes_back:
                measured += round_trip.measurements(
                    self._run,
                    self._label(step),
                    step.cases,
                    moved,
                    in_sequence=self._unit.in_sequence,
                    failed=next(filter(None, (self._failed.get(c.id) for c in step.cases)), ""),
                )
            if step.asked_again:
                rows += [*self._texts(step), *self._items(step)]
        return Part(self._unit.part(step), rows, measured)

    def _edit(self, step: Step, number: int, spent: list[costs.Cost]) -> list[Patch]:
        """Make and apply the edits of one round; the patches, none where they are taken back."""
        cases = [
            case for case in step.cases if len(case.edits) >= number and case.id not in self._failed
        ]
        if not cases:
            return []
        facts = [fact for case in cases for fact in case.edits[number - 1]]
        patches: list[Patch] = []
        after = self._state
        with contextlib.ExitStack() as made:
            try:
                with costs.counted(self._lm) as cost:
                    spent.append(cost)
                    several = self._worker.edit(facts, after, one_by_one=self._unit.size == 1)
                    for patch, state in several:
                        made.enter_context(patch.apply(self._lm))
                        patches.append(patch)
                        after = state
            except Exception as error:
                self._failed |= {case.id: coded(error) for case in cases}
                self._errors.append((cases[0].id, error))
                return []
            if not self._stays_healthy(step, number, cases):
                return []
            self._active.push(made.pop_all())
        self._state = after
        self._digests += [patch.digest() for patch in patches]
        return patches

    def _stays_healthy(self, step: Step, number: int, cases: Sequence[Case]) -> bool:
        """Whether perplexity allows the edits of a round, just applied, to stay."""
        limit = self._worker.spec.health.rollback_above
        if limit is None:
            return True
        texts = self._ask_texts()
        found = health.ratio(texts, self._begin.before)
        # A ratio that is no number is of a model that is broken.
        kept = found <= limit
        edits = step.end if self._unit.in_sequence else 0
        self._checks.append(
            health.checked(self._run, self._label(step), found, kept=kept, edits=edits)
        )
        if kept:
            self._texts_now = texts
        else:
            for case in cases:
                self._rolled_back[case.id] = (*self._rolled_back.get(case.id, ()), number)
        return kept

    def _ask_texts(self) -> Before:
        """The texts whose perplexity is taken, asked of the model as it is now."""
        questions = map(health.text_question, self._worker.texts)
        return ask(self._lm, questions, batch_tokens=self._worker.batch_tokens).given

    def _unedited(self, step: Step) -> Iterator[Row]:
        """Rows of probes that only the unedited model is asked."""
        for case in step.cases:
            for asked in self._asked(case, rounds=0):
                yield row_before(self._run, asked, self._begin.before, self._models)

    def _due(self, step: Step, number: int, *, is_last: bool) -> Iterator[Asked]:
        """Probes to ask after a round of a step: of its cases, and of all before where so planned.

        Between the checkpoints of a sequence, of a case that is complete only some roles are asked.
        """
        immediate = self._worker.spec.regime.immediate
        for place, case in enumerate(self._unit.cases[: step.end]):
            final = len(case.edits)
            if place >= step.begin and number <= final:
                rounds = number
            elif place < step.begin and step.asked_again and is_last:
                rounds = final
            else:
                continue
            for asked in self._asked(case, rounds, place + 1, step.end):
                if step.asked_again or rounds < final or plan.is_among(asked.probe.role, immediate):
                    yield asked

    def _asked(self, case: Case, rounds: int, place: int = 0, edits: int = 0) -> Iterator[Asked]:
        longest = self._worker.spec.ask.max_new_tokens
        if not self._unit.in_sequence:
            place = edits = 0
        undone = tuple(one for one in self._rolled_back.get(case.id, ()) if one <= rounds)
        for number, probe in plan.due(case, rounds):
            question = question_of(probe, longest)
            yield Asked(case, number, probe, question, rounds, place, edits, undone)

    def _ask(self, due: list[Asked]) -> list[Row]:
        fine = [one.question for one in due if one.case.id not in self._failed]
        given = ask(self._lm, fine, batch_tokens=self._worker.batch_tokens)
        begin, models = self._begin, self._models
        return [
            row_skipped(self._run, one, self._failed[one.case.id])
            if one.case.id in self._failed
            else row_after(self._run, one, given, begin.before, begin.distributions, models)
            for one in due
        ]

    @property
    def _models(self) -> Models:
        base = self._worker.base
        return Models(base, f"{base}+{plan.digest_of(self._digests)}")

    def _label(self, step: Step) -> str:
        """How measurements call a step."""
        return f"{self._unit.label}, {step.end}" if self._unit.in_sequence else self._unit.label

    def _measured(
        self, step: Step, spent: list[costs.Cost], patches: list[Patch], ask_seconds: float
    ) -> list[Measurement]:
        run, label = self._run, self._label(step)
        edits = step.end if self._unit.in_sequence else 0
        facts = sum(len(one) for case in step.cases for one in case.edits)
        found = [
            Measurement(
                run=run,
                case=case,
                name="error",
                edits=edits,
                skipped=str(error) if isinstance(error, CorrigendaError) else repr(error),
            )
            for case, error in self._errors
        ]
        self._errors = []
        found += self._checks
        if not any(case.id in self._failed for case in step.cases):
            found += costs.measurements(run, label, spent, patches, facts, edits)
            found.append(costs.cost_of(run, label, "ask_seconds", ask_seconds, facts, edits))
        if step.number == 0 and self._worker.fit_seconds:
            seconds = self._worker.fit_seconds
            found.append(costs.cost_of(run, label, "fit_seconds", seconds, facts, edits))
            self._worker.fit_seconds = 0.0
        if step.asked_again and self._worker.spec.health.drift:
            found += health.drift(run, label, self._lm, edits)
        here = harness.Moment(run, self._unit.label, edits)
        if step.number == 0:
            found += harness.at(self._begin.abilities, here, Stage.BEFORE)
        if step.asked_again:
            spec, batch_tokens = self._worker.spec, self._worker.batch_tokens
            found += harness.measured(self._lm, spec.health, here, batch_tokens)
        return found

    def _texts(self, step: Step) -> list[Row]:
        """Rows of the texts whose perplexity is taken."""
        questions = {text: health.text_question(text) for text in self._worker.texts}
        checked = self._worker.spec.health.rollback_above is not None
        given = self._texts_now if checked else self._ask_texts()
        edits = step.end if self._unit.in_sequence else 0
        return [
            health.text_row(
                Row(
                    run=self._run,
                    case=f"{self._unit.label}: text {number}",
                    role=health.PERPLEXITY,
                    protocol=question.protocol,
                    edits=edits,
                    model=self._models.after,
                    model_before=self._models.before,
                ),
                text,
                given[question],
                self._begin.before.get(question),
            )
            for number, (text, question) in enumerate(questions.items())
        ]

    def _items(self, step: Step) -> list[Row]:
        """Rows of the items of other tasks."""
        like = Row(
            run=self._run,
            case=self._unit.label,
            role=tasks.FAMILY,
            protocol=Protocol.RANK,
            edits=step.end if self._unit.in_sequence else 0,
            model=self._models.after,
            model_before=self._models.before,
        )
        before, batch_tokens = self._begin.before, self._worker.batch_tokens
        return tasks.rows(self._lm, self._worker.items, like, before, batch_tokens)
