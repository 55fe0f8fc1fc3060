"""The smallest rank at which a dense change still does what the patch was made for."""

from __future__ import annotations

from typing import NamedTuple

from corrigenda.assessment import Assessment, Outcome, assess, list_facts
from corrigenda.errors import NotExportable
from corrigenda.exports.adapter_rules import RANKS
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.patch.changes import Change, norm
from corrigenda.patch.weights import WeightPatch
from corrigenda.prompt_answers import Role
from corrigenda.transforms.compress_rank import CompressRank

_LADDER = RANKS[1:]
_MOST_FACTS = 64


class Shrunk(NamedTuple):
    """A patch whose changes are factors small enough for an adapter.

    Attributes:
        patch: The patch; the one given where nothing had to be done.
        lost: Sentences on what was left out.
    """

    patch: WeightPatch
    lost: tuple[str, ...]


def shrink(patch: WeightPatch, lm: LanguageModel) -> Shrunk:
    """Compress the changes that are too large for an adapter, as far as the edit allows.

    Of the ranks that engines take, the smallest is chosen at which every fact that the patch makes
    true stays true, and at least as many paraphrases are answered with the target. Changes that
    are small already are compressed along only if their rank exceeds it.

    Args:
        patch: A patch of weights, not active on the model.
        lm: The model it was made on.

    Raises:
        NotExportable (CG405): no rank that is smaller than the change keeps the edit.
    """
    if not any(map(_is_large, patch.changes.values())):
        return Shrunk(patch, ())
    whole = CompressRank(rank=_LADDER[-1], energy=1.0)(patch, lm)
    facts = list_facts(patch)[:_MOST_FACTS] if patch.header.facts else []
    wanted = assess(lm, patch, facts) if facts else None
    for rank in _LADDER:
        if any(_is_larger(change, rank) for change in patch.changes.values()):
            break
        smaller = CompressRank(rank=rank, energy=1.0)(whole, lm)
        found = assess(lm, smaller, facts) if facts else None
        if wanted is None or found is None or not _count_lost(wanted, found):
            return Shrunk(smaller, (_describe(patch, smaller, rank, wanted, found),))
    raise NotExportable(
        "the change is dense, and no rank at which an adapter is smaller keeps what it makes true.",
        where=patch.header.method,
        hint="Export the merged model instead (--to merged, or --to gguf).",
    )


def _is_large(change: Change) -> bool:
    """Return whether a change is dense, or of a rank that no engine takes."""
    if isinstance(change, LowRank):
        return change.rank > RANKS[-1]
    return _is_larger(change, min(change.shape)) or min(change.shape) > RANKS[-1]


def _is_larger(change: Change, rank: int) -> bool:
    """Return whether factors of a rank are larger than the weight."""
    d_out, d_in = change.shape
    return rank * (d_out + d_in) > d_out * d_in


def _count_lost(before: Assessment, after: Assessment) -> int:
    lost = sum(
        old is not Outcome.FAILED and new is Outcome.FAILED
        for old, new in zip(before.outcomes, after.outcomes, strict=True)
    )
    shares = [one.share(Role.PARAPHRASE) or 0.0 for one in (before, after)]
    return lost + (shares[1] < shares[0])


def _describe(
    patch: WeightPatch,
    smaller: WeightPatch,
    rank: int,
    wanted: Assessment | None,
    found: Assessment | None,
) -> str:
    total = sum(norm(change) ** 2 for change in patch.changes.values())
    kept = sum(norm(change) ** 2 for change in smaller.changes.values()) / total
    text = f"the change is dense; rank {rank} keeps {kept:.1%} of its squared norm"
    if wanted is None or found is None:
        return f"{text}; the patch names no facts, so nothing was asked."
    true = sum(outcome is not Outcome.FAILED for outcome in found.outcomes)
    changed = sum(
        old.after != new.after for old, new in zip(wanted.answers, found.answers, strict=True)
    )
    return (
        f"{text}, {true} of {len(found.outcomes)} facts are true (as before), and {changed} of "
        f"{len(found.answers)} answers are other ones than with the whole change."
    )
