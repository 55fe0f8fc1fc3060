"""What is left of edits after their weights were quantised or fine-tuned.

Measurements `survival/<treatment>/<kind>` hold how many prompts of a case still get the wanted
answer, and how many there are: the new object for the fact's own prompt and its paraphrases, the
old answer for neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

from corrigenda.metrics.estimate import BOOTSTRAP, AnswerValue, Bootstrap, Estimate, over_cases
from corrigenda.metrics.metric import Metric, define
from corrigenda.metrics.selection import measurements
from corrigenda.rows import Measurement

FAMILY = "survival"
"""Family of the measurements."""

KINDS = {
    "efficacy": "facts that are true",
    "paraphrases": "paraphrases that get the new object",
    "neighbours": "neighbours that keep their answer",
}
"""Kinds of prompts, with their titles."""


def surviving(
    records: Sequence[Measurement],
    treatment: str,
    kind: str,
    *,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Share of prompts with the wanted answer after a treatment, over cases.

    Args:
        records: Of one run; `values` are the prompts with the wanted answer, and all.
        treatment: Such as "q8_0 merged", "q4_0 adapter" or "fine-tuned".
        kind: One of `KINDS`.
        bootstrap: How to find the interval.
    """
    name = f"{FAMILY}/{treatment}/{kind}"
    found, skipped = measurements(records, name)
    last = max((one.edits for one in found), default=0)
    items = [
        AnswerValue(one.case, one.values[0] / one.values[1])
        for one in found
        if one.values[1] and one.edits == last
    ]
    return over_cases(name, items, skipped=skipped, bootstrap=bootstrap)


def names_of_treatments(records: Sequence[Measurement]) -> list[str]:
    """Return the treatments that were measured, in their order."""
    kinds = [one.kind for one in records if one.family == FAMILY]
    return list(dict.fromkeys(kind.partition("/")[0] for kind in kinds))


def metrics_of(treatment: str) -> list[Metric]:
    """Return the metrics of a treatment."""
    return [
        define(
            f"{FAMILY}/{treatment}/{kind}",
            f"{title}, weights {treatment}",
            surviving,
            treatment,
            kind,
            reads=f"{FAMILY}/{treatment}/{kind}",
        )
        for kind, title in KINDS.items()
    ]
