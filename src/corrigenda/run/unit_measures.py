"""What is measured in one unit apart from its probes: costs, drift, errors, and the whole model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from corrigenda.cases import Protocol
from corrigenda.errors import CorrigendaError
from corrigenda.metrics.survival import FAMILY
from corrigenda.patch.protocols import Patch
from corrigenda.rows import Measurement, Row, Stage
from corrigenda.run import costs, health, tasks
from corrigenda.run.context import UnitContext
from corrigenda.run.plan import UnitStep
from corrigenda.run.rollback import Rollback
from corrigenda.run.survival import NOT_WEIGHTS, SurvivalMeter
from corrigenda.run.unit_edits import UnitEdits


class StepWork(NamedTuple):
    """What one step of a unit did.

    Attributes:
        spent: Cost of each round.
        patches: Patches that stay active.
        ask_seconds: Time spent asking probes.
        fit_seconds: Time spent fitting the method, to be reported with this step; 0 without.
    """

    spent: Sequence[costs.Cost]
    patches: Sequence[Patch]
    ask_seconds: float
    fit_seconds: float


class UnitMeasures:
    """Measures a unit, with the edits that are active."""

    def __init__(self, context: UnitContext, edits: UnitEdits, rollback: Rollback) -> None:
        """Bind the measures to a unit."""
        self._context, self._edits, self._rollback = context, edits, rollback

    def measure_step(self, step: UnitStep, work: StepWork) -> Iterator[Measurement]:
        """Yield errors, checks, costs, drift and abilities after a step."""
        context = self._context
        run, label, edits = context.run, context.label(step), context.num_edits(step)
        for case, error in self._edits.take_errors():
            reason = str(error) if isinstance(error, CorrigendaError) else repr(error)
            yield Measurement(run=run, case=case, name="error", edits=edits, skipped=reason)
        yield from self._rollback.take_checks()
        facts = sum(len(facts) for case in step.cases for facts in case.edits)
        if not self._edits.failure(step):
            yield from costs.build_costs(run, label, work.spent, work.patches, facts, edits)
            yield costs.build_cost(run, label, "ask_seconds", work.ask_seconds, facts, edits)
        if work.fit_seconds:
            yield costs.build_cost(run, label, "fit_seconds", work.fit_seconds, facts, edits)
        if step.asked_again and context.spec.health.drift:
            yield from health.measure_drift(run, label, context.lm, edits)
        if step.asked_again and context.survival is not None:
            yield from self._measure_survival(context.survival, step)
        moment = tasks.Moment(run, context.unit.label, edits)
        if step.number == 0:
            yield from tasks.place_scores(context.abilities, moment, Stage.BEFORE)
        if step.asked_again:
            yield from tasks.scores_after(
                context.lm, context.spec.health, moment, context.batch_tokens
            )

    def _measure_survival(self, meter: SurvivalMeter, step: UnitStep) -> Iterator[Measurement]:
        """Yield what is left of the edits of a step after treatments of their weights."""
        context = self._context
        run, edits = context.run, context.num_edits(step)
        found = list(meter.measure(context.lm, step.cases))
        for one in found:
            values = [float(one.right), float(one.asked)]
            yield Measurement(run=run, case=one.case, name=one.name, values=values, edits=edits)
        if not found:
            name = f"{FAMILY}/{meter.forms[0]}/efficacy"
            label = context.label(step)
            yield Measurement(run=run, case=label, name=name, edits=edits, skipped=NOT_WEIGHTS)

    def text_rows(self, step: UnitStep) -> list[Row]:
        """Return the rows of the texts whose perplexity is taken."""
        context = self._context
        given = self._rollback.text_answers()
        like = self._build_row_like(step, health.PERPLEXITY)
        return [
            health.build_text_row(like, number, text, given, context.baseline)
            for number, text in enumerate(dict.fromkeys(context.texts))
        ]

    def item_rows(self, step: UnitStep) -> list[Row]:
        """Return the rows of the items of other tasks."""
        context = self._context
        like = self._build_row_like(step, tasks.FAMILY)
        return tasks.ask_items(
            context.lm, context.items, like, context.baseline, context.batch_tokens
        )

    def _build_row_like(self, step: UnitStep, role: str) -> Row:
        """Return a row of the whole model: which run, unit and moment."""
        models = self._edits.models
        return Row(
            run=self._context.run,
            case=self._context.unit.label,
            role=role,
            protocol=Protocol.RANK,
            edits=self._context.num_edits(step),
            model=models.after,
            model_before=models.before,
        )
