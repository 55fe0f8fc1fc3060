"""The edits of one unit: made, applied, and taken off again where they fail or go too far."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from corrigenda.cases import Case
from corrigenda.facts import Fact
from corrigenda.patch.protocols import Patch
from corrigenda.run import costs
from corrigenda.run.context import UnitContext
from corrigenda.run.plan import UnitStep, hash_content
from corrigenda.run.prober import describe_error
from corrigenda.run.rollback import Rollback
from corrigenda.run.row_builder import ModelDigests
from corrigenda.state import State


class PatchMaker(Protocol):
    """Makes the patches of some facts, each to be applied before the next is made."""

    def __call__(
        self, facts: Sequence[Fact], state: State | None, *, one_by_one: bool
    ) -> Iterator[tuple[Patch, State | None]]:
        """Return patches with the state after each; see `Worker.make_patches`."""
        ...


class RoundEdits(NamedTuple):
    """What one round of a step left.

    Attributes:
        patches: Patches that stay active.
        cost: What making and applying the edits cost; None where nothing was edited.
    """

    patches: list[Patch]
    cost: costs.Cost | None


class UnitEdits:
    """Patches of a unit that are active, the state after them, and the cases whose edit failed.

    Attributes:
        failed: Why an edit failed, by case.
        errors: Errors that were not yet reported, each with the first case that it concerns.
    """

    def __init__(
        self,
        context: UnitContext,
        make_patches: PatchMaker,
        state: State | None,
        fit_error: Exception | None,
    ) -> None:
        """Begin without patches.

        Args:
            context: What the steps of the unit share.
            make_patches: Makes patches.
            state: State after the fit.
            fit_error: Why there is no state; every case of the unit fails by it.
        """
        self._context, self._make_patches, self._state = context, make_patches, state
        self._active = contextlib.ExitStack()
        self._digests: list[str] = []
        self.failed: dict[str, str] = {}
        self.errors: list[tuple[str, Exception]] = []
        if fit_error is not None:
            self._note_failure(context.unit.cases, fit_error)

    @property
    def models(self) -> ModelDigests:
        """Digests of the unedited model and of the model with the active patches."""
        base = self._context.base
        return ModelDigests(base, f"{base}+{hash_content(self._digests)}")

    def failure(self, step: UnitStep) -> str:
        """Return why an edit of a step failed; empty where none did."""
        return next(filter(None, (self.failed.get(case.id) for case in step.cases)), "")

    def apply_round(self, step: UnitStep, number: int, rollback: Rollback) -> RoundEdits:
        """Make and apply the edits of one round; an error or the rollback takes them off again.

        Args:
            step: The step.
            number: The round of its cases, from 1.
            rollback: Decides, once the cases are edited, whether their patches stay.
        """
        cases = [
            case for case in step.cases if len(case.edits) >= number and case.id not in self.failed
        ]
        if not cases:
            return RoundEdits([], None)
        facts = [fact for case in cases for fact in case.edits[number - 1]]
        patches: list[Patch] = []
        state = self._state
        with contextlib.ExitStack() as applied:
            cost = costs.Cost()
            try:
                with costs.count_cost(self._context.lm, cost):
                    made = self._make_patches(facts, state, one_by_one=self._context.unit.size == 1)
                    for patch, after in made:
                        applied.enter_context(patch.apply(self._context.lm))
                        patches.append(patch)
                        state = after
            except Exception as error:
                self._note_failure(cases, error)
                return RoundEdits([], cost)
            if not rollback.allows(step, number, cases):
                return RoundEdits([], cost)
            self._active.push(applied.pop_all())
        self._state = state
        self._digests += [patch.digest() for patch in patches]
        return RoundEdits(patches, cost)

    def take_errors(self) -> list[tuple[str, Exception]]:
        """Return the errors since the last call."""
        errors, self.errors = self.errors, []
        return errors

    def close(self) -> None:
        """Take all patches off."""
        self._active.close()

    def _note_failure(self, cases: Sequence[Case], error: Exception) -> None:
        self.failed |= {case.id: describe_error(error) for case in cases}
        self.errors.append((cases[0].id, error))
