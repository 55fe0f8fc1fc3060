"""Notes in the header of a patch: the status of each fact, notices, and rounded figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from corrigenda.facts import Fact

EVEN_ODDS = math.log(2.0)
"""Loss of an answer, in nats, at which it is as likely as all others together."""

EditStatus = Literal["written", "not converged", "clamped", "left out"]


def summarise(
    facts: Sequence[Fact], statuses: Sequence[str], warnings: Sequence[str]
) -> dict[str, object]:
    """Return the notes common to all methods: the status of each fact, and notices in words."""
    failed = [
        f"{fact.label}: {status}; the target stayed unlikely in the search."
        for fact, status in zip(facts, statuses, strict=True)
        if status not in ("written", "left out")
    ]
    return {"status": list(statuses), "notices": [*warnings, *failed]}


def round_series(series: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Round each list of figures to six significant digits, for headers that people read."""
    return {name: round_values(values) for name, values in series.items()}


def round_values(values: Sequence[float]) -> list[float]:
    """Round figures to six significant digits."""
    return [float(f"{value:.6g}") for value in values]
