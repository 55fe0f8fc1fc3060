"""The result of a stream of edits, from which any fact can be taken out again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

from corrigenda.editor import Editor
from corrigenda.engines.closed_form import ClosedFormEditor, JointEditor
from corrigenda.errors import BadConfig, did_you_mean
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.methods.registry import METHODS
from corrigenda.patch import Applied, ComposedPatch, Header, Patch, PatchValue, WeightPatch
from corrigenda.patch.ledger import ledger_of
from corrigenda.patch.module import module_class
from corrigenda.state import State
from corrigenda.streaming.batches import StreamBatch
from corrigenda.streaming.solutions import AddedSolution, JointSolution, NoChanges, Solution

How = Literal["recompute", "downdate"]
"""How records are taken out: by adding the others anew, or by subtracting these."""

_HOWS: tuple[How, ...] = ("recompute", "downdate")


class Base(NamedTuple):
    """The unedited model of a stream.

    Attributes:
        digest: Of its weights.
        name: What it is called.
    """

    digest: str | None
    name: str

    @classmethod
    def of(cls, lm: LanguageModel) -> Base:
        """Return that of a model, its patches apart."""
        return cls(ledger_of(lm).base(lm), lm.name)


@dataclass(frozen=True, eq=False, repr=False)
class EditStream:
    """Many edits, made batch by batch; a value, of which `patch` is the edit as one patch.

    The weights are a function of the records alone: of the keys and residuals that were found for
    each fact when its batch was edited. Taking a fact out takes its records out. What is left is,
    to the bit, the weights of a stream that has the other records and never had these.

    Attributes:
        editor: The method.
        state: Its fitted state, without what the stream adds.
        base: The unedited model.
        batches: All batches, in order, also those that were taken out.
        gone: Places of the facts that were taken out, from 0.
        solution: The changes of the weights.
    """

    editor: Editor
    state: State
    base: Base
    batches: tuple[StreamBatch, ...]
    gone: frozenset[int]
    solution: Solution

    @classmethod
    def empty(cls, editor: Editor, state: State, base: Base) -> EditStream:
        """Return a stream without batches.

        Raises:
            BadConfig (CG502): the edits of the method cannot be taken out one by one.
        """
        return cls(editor, state, base, (), frozenset(), _begin(editor, state))

    @classmethod
    def of(
        cls,
        editor: Editor,
        state: State,
        base: Base,
        batches: Sequence[StreamBatch],
        gone: Collection[int] = (),
    ) -> EditStream:
        """Return the stream that some records give, all added anew in their order."""
        solution = _begin(editor, state)
        for batch in batches:
            solution = solution.added(batch, frozenset(gone))
        return cls(editor, state, base, tuple(batches), frozenset(gone), solution)

    def __len__(self) -> int:
        """Return how many facts were given, also those that were taken out."""
        return sum(len(batch.facts) for batch in self.batches)

    @property
    def facts(self) -> tuple[Fact, ...]:
        """All facts that were given, by place."""
        return tuple(fact for batch in self.batches for fact in batch.facts)

    @property
    def statuses(self) -> tuple[str, ...]:
        """Status of each fact, by place; "taken out" for those that were."""
        own = [status for batch in self.batches for status in batch.statuses]
        return tuple("taken out" if place in self.gone else one for place, one in enumerate(own))

    @property
    def written(self) -> tuple[int, ...]:
        """Places of the facts whose records are in."""
        return tuple(
            place for batch in self.batches for place in batch.written if place not in self.gone
        )

    @property
    def error(self) -> float | None:
        """Estimate of the greatest difference of a weight from the exact one; None if exact.

        After a down-date of a joint system it is measured on 16 rows of each weight, so that others
        may differ by a few times as much; where batches add up it is a bound of the rounding.
        """
        return self.solution.error

    @cached_property
    def members(self) -> tuple[PatchValue, ...]:
        """Patches that are the stream when they are applied in this order.

        Those of weights name no facts, so that they cost the same however many there are.
        """
        if not isinstance(self.solution, NoChanges):
            patch = WeightPatch(self.solution.changes(), self._header([]))
            return () if patch.is_empty else (patch,)
        kept = [batch.keep_entries(self.gone) for batch in self.batches]
        return tuple(one for one in kept if isinstance(one, PatchValue))

    @cached_property
    def patch(self) -> Patch:
        """The stream as one patch, which is applied, saved and exported like any other."""
        if len(self.members) > 1:
            return ComposedPatch(self.members)
        (member,) = self.members or (WeightPatch({}, self._header([])),)
        if isinstance(member, WeightPatch):
            return WeightPatch(member.changes, self._header(self.written))
        return member

    def apply(self, lm: LanguageModel) -> Applied:
        """Make all edits active on a model; see `Patch.apply` for errors.

        Returns:
            A context manager with `.revert()`.
        """
        return self.patch.apply(lm)

    def added(self, batch: StreamBatch) -> EditStream:
        """Return the stream with one more batch; what was down-dated is computed anew first."""
        base = self if self.error is None else self.recomputed()
        solution = base.solution.added(batch, self.gone)
        return replace(self, batches=(*self.batches, batch), solution=solution)

    def without(
        self,
        facts: int | Collection[int] = (),
        *,
        batches: int | Collection[int] = (),
        how: How = "recompute",
    ) -> EditStream:
        """Return the stream without some facts; this one stays as it is.

        Args:
            facts: Places of facts in the list that was given, from 0. What is out already, and what
                was true already, may be among them.
            batches: Numbers of batches, from 0: all their facts.
            how: "recompute" adds the records of all others anew, so that weights are to the bit
                those of a stream that never had these. "downdate" subtracts what they did, which
                takes a time that does not depend on the other facts; `error` estimates by how much
                the weights differ. Stores delete entries and are exact in both.

        Raises:
            BadConfig (CG502): no such place, number or way.
        """
        if how not in _HOWS:
            hint = did_you_mean(str(how), _HOWS)
            raise BadConfig(f'"{how}" is no way to take facts out.', hint=hint)
        more = frozenset(self._list_places(facts, batches))
        if how == "recompute":
            return replace(self, gone=self.gone | more).recomputed()
        solution = self.solution.downdated(self.batches, self.gone, more)
        return replace(self, gone=self.gone | more, solution=solution)

    def recomputed(self) -> EditStream:
        """Return the same stream with all records added anew: exact after down-dates."""
        return EditStream.of(self.editor, self.state, self.base, self.batches, self.gone)

    def next_state(self) -> State:
        """Return the state that the next batch is edited with."""
        carried = self.batches[-1].carried if self.batches else {}
        state = self.state.updated(carried) if carried else self.state
        return self.solution.extend(state)

    def __repr__(self) -> str:
        out = f", {len(self.gone)} taken out" if self.gone else ""
        return (
            f"<stream of {len(self)} {self.editor.name} edits on {self.base.name} in "
            f"{len(self.batches)} batches{out}>"
        )

    def _list_places(
        self, facts: int | Collection[int], batches: int | Collection[int]
    ) -> list[int]:
        given = [facts] if isinstance(facts, int) else list(facts)
        numbers = [batches] if isinstance(batches, int) else list(batches)
        for named, count, what in (
            (given, len(self), "fact"),
            (numbers, len(self.batches), "batch"),
        ):
            wrong = [one for one in named if not 0 <= one < count]
            if wrong:
                raise BadConfig(
                    f"there is no {what} {wrong[0]} in a stream of {count}.",
                    hint=f"Numbers are from 0 to {count - 1}." if count else "It is empty.",
                )
        return given + [place for one in numbers for place in self.batches[one].places]

    def _header(self, places: Sequence[int]) -> Header:
        facts, statuses = (self.facts, self.statuses) if places else ((), ())
        # Notices of many thousands of facts would make the header larger than the patch.
        return Header.model_validate(
            {
                "method": self.editor.name,
                "config": self.editor.model_dump(mode="json"),
                "facts": [facts[place] for place in places],
                "base_digest": self.base.digest,
                "base_name": self.base.name,
                "notes": {"status": [statuses[place] for place in places], "notices": []},
            }
        )


def require_separable(editor: Editor) -> None:
    """Refuse a method whose edits cannot be taken out one by one.

    Raises:
        BadConfig (CG502): names the methods that can, or the option that ties edits together.
    """
    if not is_separable(editor):
        raise BadConfig(
            f"the edits of {editor.name} cannot be streamed: none can be taken out by itself.",
            where=f"method {editor.name}",
            hint=f"These can: {', '.join(list_separable())}.",
        )
    if getattr(editor, "corrects_changes", False):
        raise BadConfig(
            "with `ideal_weight` a change depends on all edits before: none comes out alone.",
            where=f"method {editor.name}",
            hint="Set it to 0; with `sequential` all edits are fitted together too.",
        )


def is_separable(editor: Editor | type[Editor]) -> bool:
    """Return whether a method has a closed form of records, or stores entries of single facts."""
    if hasattr(editor, "record") and hasattr(editor, "joins_batches"):
        return True
    kind = module_class(editor.name)
    return kind is not None and hasattr(kind, "without")


def list_separable() -> list[str]:
    """Return the names of all methods whose edits can be taken out one by one."""
    return [name for name in METHODS.names() if is_separable(METHODS.get(name))]


def _begin(editor: Editor, state: State) -> Solution:
    require_separable(editor)
    if isinstance(editor, ClosedFormEditor):
        if not editor.joins_batches:
            return AddedSolution(editor, state)
        assert isinstance(editor, JointEditor), "batches are joined in its coordinates"
        return JointSolution(editor, state)
    return NoChanges()
