"""Facts that cause damage: the edit is measured again with one of them left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from corrigenda.engines.locate.pipeline import LocateThenEdit
from corrigenda.facts import Fact
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.methods.registry import METHODS
from corrigenda.patch.changes import Change
from corrigenda.patch.protocols import Patch
from corrigenda.patch.value import PatchValue, members_of
from corrigenda.patch.weights import WeightPatch
from corrigenda.progress import report_stage

AT_ONCE = 16
"""Facts, or groups of them, that are left out one after the other."""


class Cause(NamedTuple):
    """Share of the damage that goes where a fact, or several, are left out.

    Attributes:
        facts: Places of the facts, one unless there are too many to leave out each.
        damage: Damage without them.
        spared: Damage of the whole edit minus this; below 0 where it is worse without them.
    """

    facts: tuple[int, ...]
    damage: float
    spared: float


def split_patch(patch: Patch, count: int) -> list[Patch]:
    """Return a patch as parts, one for each of its facts; an empty list where that is not possible.

    A composed patch with a member for each fact has them as parts. So has a change of weights in
    factors with one column for each fact, as closed-form methods make it: the columns of a fact, at
    all sites, are what it adds to the sum. Without them, the edit is nearly the one of the other
    facts: they were solved for together.

    Args:
        patch: The patch.
        count: Number of its facts.
    """
    members = members_of(patch) if isinstance(patch, PatchValue) else (patch,)
    if len(members) == count:
        return list(members)
    if not isinstance(patch, WeightPatch) or not _is_closed_form(patch):
        return []
    if any(not isinstance(one, LowRank) or one.rank != count for one in patch.changes.values()):
        return []
    own = [one for one in patch.header.facts if not one.get("chat")]
    facts = own if len(own) == count else [None] * count
    found: list[Patch] = []
    for place, fact in enumerate(facts):
        update = {"facts": () if fact is None else (fact,), "notes": {}, "parts": ()}
        changes = {site: _column(one, place) for site, one in patch.changes.items()}
        found.append(WeightPatch(changes, patch.header.model_copy(update=update)))
    return found


def _is_closed_form(patch: WeightPatch) -> bool:
    """Return whether a patch is the sum of what was solved for each fact."""
    known = METHODS.names()
    method = patch.header.method
    return method in known and issubclass(METHODS.get(method), LocateThenEdit)


def _column(change: Change, place: int) -> LowRank:
    assert isinstance(change, LowRank), "checked by the caller"
    columns = slice(place, place + 1)
    return LowRank(change.left[:, columns], change.right[:, columns])


def find_causes(
    lm: LanguageModel,
    total: float,
    leave_out: Callable[[Sequence[int]], Patch | Sequence[Patch]],
    places: Sequence[int],
    measure: Callable[[], float],
) -> list[Cause]:
    """Return facts by the damage that goes without them, largest first.

    Where there are more than `AT_ONCE`, groups of them are left out first, and then each fact of
    the group that causes most.

    Args:
        lm: The model, unedited.
        total: Damage of the whole edit.
        leave_out: Returns the edit without the facts at these places, as one patch or several.
        places: The facts that can be left out.
        measure: Returns the damage of the model as it is.
    """
    size = -(-len(places) // AT_ONCE)
    groups = [tuple(places[begin : begin + size]) for begin in range(0, len(places), max(1, size))]
    found = _leave_out_each(lm, total, leave_out, groups, measure)
    if found and size > 1 and found[0].spared > 0:
        single = [(place,) for place in found[0].facts]
        found = [*_leave_out_each(lm, total, leave_out, single, measure), *found[1:]]
        found.sort(key=lambda one: -one.spared)
    return found


def _leave_out_each(
    lm: LanguageModel,
    total: float,
    leave_out: Callable[[Sequence[int]], Patch | Sequence[Patch]],
    groups: Sequence[tuple[int, ...]],
    measure: Callable[[], float],
) -> list[Cause]:
    found: list[Cause] = []
    for number, group in enumerate(groups):
        report_stage("guard: facts left out", number, len(groups))
        rest = leave_out(group)
        parts = list(rest) if isinstance(rest, Sequence) else [rest]
        with ExitStack() as stack:
            for part in parts:
                # A later part may have been made on top of one that is left out.
                stack.enter_context(part.apply(lm, force=True))
            damage = measure()
        found.append(Cause(group, damage, total - damage))
    report_stage("guard: facts left out", len(groups), len(groups))
    return sorted(found, key=lambda one: -one.spared)


def label_facts(facts: Sequence[Fact], places: Sequence[int]) -> str:
    """Return the facts of a cause in a few words."""
    texts = [f"{facts[place].prompt} {facts[place].target}" for place in places]
    shown = "; ".join(texts[:2])
    return shown if len(texts) <= 2 else f"{shown}; and {len(texts) - 2} more"
