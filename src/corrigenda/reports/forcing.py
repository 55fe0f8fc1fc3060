"""How much of a score is teacher forcing: one question under all protocols, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from corrigenda.cases import GENERATED, Protocol
from corrigenda.rows import Row, Stage

ROLES = ("reliability", "generalization", "portability")

_NATURAL = {
    ":contains": "occurs in the answer",
    ":f1": "F1 of words",
    ":wild": "all before the first full stop",
    "": "the whole answer",
    ":judge": "a judge says so",
}
LINES: Mapping[str, str] = {
    "teacher_forced": "teacher forced: share of tokens",
    "teacher_forced:exact": "teacher forced: all tokens",
    "greedy": "first line: begins with it",
    "greedy:exact": "first line: nothing else",
    **{f"generate{name}": f"natural: {title}" for name, title in _NATURAL.items()},
    **{f"chat{name}": f"chat: {title}" for name, title in _NATURAL.items()},
}
"""Measures from the most lenient to the strictest, protocol by protocol."""


def list_measures(rows: Iterable[Row], role: str) -> Sequence[str]:
    """Return the measures of a role to be shown side by side; none without teacher forcing.

    Args:
        rows: Of a run.
        role: A family of roles.

    Example:
        >>> rows = [Row(case="1", role="reliability", protocol=one) for one in Protocol]
        >>> list_measures(rows, "reliability")[:3]
        ['teacher_forced', 'teacher_forced:exact', 'greedy']
    """
    asked = {row.protocol for row in rows if row.family == role and row.stage == Stage.AFTER}
    if Protocol.TEACHER_FORCED not in asked or not asked.intersection(GENERATED):
        return []
    return [name for name in LINES if name.partition(":")[0] in asked]
