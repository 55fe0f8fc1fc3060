"""Verdicts on corrections from assessments: outcomes of facts, and shares of wanted answers."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from corrigenda.books.records import Verdict

if TYPE_CHECKING:
    from corrigenda.assessment import Assessment

IN_CHAT = " in chat"
"""What is added to the name of a role for answers in the chat form."""


def judge(found: Assessment, first: int = 0, count: int | None = None) -> Verdict:
    """Return the verdict on some facts of an assessment.

    Args:
        found: The assessment.
        first: Place of the first fact.
        count: How many; all from there if None.
    """
    end = len(found.facts) if count is None else first + count
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for one in found.answers:
        if first <= one.fact < end:
            tally = counts[f"{one.role}{IN_CHAT if one.chat else ''}"]
            tally[0] += one.is_wanted(found.facts[one.fact])
            tally[1] += 1
    return Verdict(
        outcomes=tuple(map(str, found.outcomes[first:end])),
        shares={name: f"{right}/{asked}" for name, (right, asked) in counts.items()},
    )
