"""One unit of work as it is done, step by step: edit, roll back, ask, measure."""

from __future__ import annotations

from corrigenda.patch.protocols import Patch
from corrigenda.run import costs, round_trip
from corrigenda.run.context import UnitContext
from corrigenda.run.plan import UnitStep
from corrigenda.run.rollback import Rollback
from corrigenda.run.store import RunPart
from corrigenda.run.unit_edits import UnitEdits
from corrigenda.run.unit_measures import StepWork, UnitMeasures
from corrigenda.run.unit_probes import UnitProbes


class UnitRun:
    """A unit in progress; its patches come off when it is closed."""

    def __init__(self, context: UnitContext, edits: UnitEdits) -> None:
        """Begin a unit.

        Args:
            context: What its steps share.
            edits: Makes its edits and keeps them active.
        """
        self._context, self._edits = context, edits
        self._rollback = Rollback(context)
        self._probes = UnitProbes(context, edits, self._rollback)
        self._measures = UnitMeasures(context, edits, self._rollback)

    def __enter__(self) -> UnitRun:
        return self

    def __exit__(self, *_: object) -> None:
        self._edits.close()

    def repeat_step(self, step: UnitStep) -> None:
        """Make the edits of a step that was recorded before."""
        for number in range(1, step.rounds + 1):
            self._edits.apply_round(step, number, self._rollback)
        self._rollback.take_checks()
        self._edits.take_errors()

    def run_step(self, step: UnitStep, fit_seconds: float = 0.0) -> RunPart:
        """Make the edits of a step, and record what is asked and measured after them.

        Args:
            step: The step.
            fit_seconds: Time spent fitting the method, to be reported with this step.
        """
        context = self._context
        rows = [*self._probes.unedited_rows(step)]
        spent: list[costs.Cost] = []
        patches: list[Patch] = []
        ask_seconds = 0.0
        distances: list[float | None] = []
        is_round_trip = all(map(round_trip.is_round_trip, step.cases))
        for number in range(1, step.rounds + 1):
            made = self._edits.apply_round(step, number, self._rollback)
            patches += made.patches
            spent += [made.cost] if made.cost else []
            if is_round_trip:
                distances.append(round_trip.measure_distance(context.lm))
            begin = costs.read_clock(context.lm.device)
            rows += self._probes.ask_round(step, number)
            ask_seconds += costs.read_clock(context.lm.device) - begin
        work = StepWork(spent, patches, ask_seconds, fit_seconds)
        measurements = [*self._measures.measure_step(step, work)]
        if is_round_trip:
            measurements += round_trip.build_measurements(
                context.run,
                context.label(step),
                step.cases,
                distances,
                in_sequence=context.unit.in_sequence,
                failed=self._edits.failure(step),
            )
        if step.asked_again:
            rows += [*self._measures.text_rows(step), *self._measures.item_rows(step)]
        return RunPart(context.unit.part(step), rows, measurements)
