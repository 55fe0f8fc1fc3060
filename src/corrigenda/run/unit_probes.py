"""The probes of one unit: which are due after a round, asked of the model, made into rows."""

from __future__ import annotations

from collections.abc import Iterator

from corrigenda.cases import Case
from corrigenda.rows import Row
from corrigenda.run import plan
from corrigenda.run.context import UnitContext
from corrigenda.run.plan import UnitStep
from corrigenda.run.queries import make_query
from corrigenda.run.rollback import Rollback
from corrigenda.run.row_builder import (
    DueProbe,
    build_row,
    build_skipped_row,
    build_unedited_row,
)
from corrigenda.run.unit_edits import UnitEdits


class UnitProbes:
    """Asks the probes of a unit, with the edits that are active."""

    def __init__(self, context: UnitContext, edits: UnitEdits, rollback: Rollback) -> None:
        """Bind the probes to a unit."""
        self._context, self._edits, self._rollback = context, edits, rollback

    def unedited_rows(self, step: UnitStep) -> Iterator[Row]:
        """Yield the rows of probes that only the unedited model is asked."""
        context = self._context
        for case in step.cases:
            for due in self._list_due(case, rounds=0):
                yield build_unedited_row(context.run, due, context.baseline, self._edits.models)

    def ask_round(self, step: UnitStep, number: int) -> list[Row]:
        """Ask the probes that are due after a round of a step.

        Args:
            step: The step.
            number: The round of its cases, from 1.
        """
        context, failed, models = self._context, self._edits.failed, self._edits.models
        due = [*self._list_due_after(step, number)]
        given = context.ask([one.query for one in due if one.case.id not in failed])
        return [
            build_skipped_row(context.run, one, failed[one.case.id])
            if one.case.id in failed
            else build_row(context.run, one, given, context.baseline, context.distributions, models)
            for one in due
        ]

    def _list_due_after(self, step: UnitStep, number: int) -> Iterator[DueProbe]:
        """Yield the probes of the cases just edited, and of all before them where so planned.

        Between the checkpoints of a sequence, of a case that is complete only some roles are asked.
        """
        immediate = self._context.spec.regime.immediate
        for place, case in enumerate(self._context.unit.cases[: step.end]):
            final = len(case.edits)
            if place >= step.begin and number <= final:
                rounds = number
            elif place < step.begin and step.asked_again and number == step.rounds:
                rounds = final
            else:
                continue
            for due in self._list_due(case, rounds, place + 1, step.end):
                if (
                    step.asked_again
                    or rounds < final
                    or plan.matches_role(due.probe.role, immediate)
                ):
                    yield due

    def _list_due(
        self, case: Case, rounds: int, place: int = 0, edits: int = 0
    ) -> Iterator[DueProbe]:
        ask = self._context.spec.ask
        if not self._context.unit.in_sequence:
            place = edits = 0
        undone = self._rollback.rolled_back(case, rounds)
        for number, probe in plan.list_due(case, rounds):
            query = make_query(probe, ask.max_new_tokens, chat=ask.chat, natural=ask.natural)
            yield DueProbe(case, number, probe, query, rounds, place, edits, undone)
