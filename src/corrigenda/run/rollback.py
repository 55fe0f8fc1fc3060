"""Rollback: edits with which the perplexity of texts rises too far are taken off again."""

from __future__ import annotations

from collections.abc import Sequence

from corrigenda.cases import Case
from corrigenda.rows import Measurement
from corrigenda.run import health
from corrigenda.run.context import UnitContext
from corrigenda.run.plan import UnitStep
from corrigenda.run.row_builder import BaselineAnswers


class Rollback:
    """Decides which edits of a unit stay, and notes which did not."""

    def __init__(self, context: UnitContext) -> None:
        """Begin with the unedited model."""
        self._context = context
        self._rounds: dict[str, tuple[int, ...]] = {}
        self._checks: list[Measurement] = []
        self._answers: BaselineAnswers = context.baseline

    def allows(self, step: UnitStep, number: int, cases: Sequence[Case]) -> bool:
        """Return whether the edits of a round, just applied, may stay.

        Args:
            step: The step.
            number: The round of its cases, from 1.
            cases: The cases that were edited.
        """
        context = self._context
        limit = context.spec.health.rollback_above
        if limit is None:
            return True
        answers = context.ask_texts()
        ratio = health.compute_ratio(answers, context.baseline)
        # NaN means a broken model, and does not pass.
        stays = ratio <= limit
        self._checks.append(
            health.build_check(
                context.run, context.label(step), ratio, stays=stays, edits=context.num_edits(step)
            )
        )
        if stays:
            self._answers = answers
        else:
            for case in cases:
                self._rounds[case.id] = (*self._rounds.get(case.id, ()), number)
        return stays

    def rolled_back(self, case: Case, rounds: int) -> tuple[int, ...]:
        """Return the rounds of a case, up to one, whose edits were taken off."""
        return tuple(one for one in self._rounds.get(case.id, ()) if one <= rounds)

    def take_checks(self) -> list[Measurement]:
        """Return the checks since the last call."""
        checks, self._checks = self._checks, []
        return checks

    def text_answers(self) -> BaselineAnswers:
        """Return the answers to the texts of the model with the edits that stayed."""
        if self._context.spec.health.rollback_above is None:
            return self._context.ask_texts()
        return self._answers
