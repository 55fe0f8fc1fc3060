"""Round trips: cases that are edited and edited back, and what is left of the change."""

from __future__ import annotations

from collections.abc import Sequence

from corrigenda.cases import Case
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.metrics.round_trip import GRAPH, RESIDUAL, Triple, graph_distance
from corrigenda.patch.ledger import ledger_of
from corrigenda.patch.moved import added_to_weight
from corrigenda.patch.weights import WeightPatch
from corrigenda.rows import Measurement

NOT_WEIGHTS = "the edit is no change of weights"
IN_SEQUENCE = "other edits are in force"


def is_round_trip(case: Case) -> bool:
    """Return whether the last round of a case restores what its first one replaced."""
    if len(case.edits) != 2:
        return False
    there, back = case.edits
    old = {(fact.prompt, fact.before) for fact in there}
    return old <= {(fact.prompt, fact.target) for fact in back}


def measure_distance(lm: LanguageModel) -> float | None:
    """Return ||W - W_0||_F over all weights under active patches; None if one is not of weights."""
    ledger = ledger_of(lm)
    sites = {site for patch in ledger if isinstance(patch, WeightPatch) for site in patch.changes}
    if any(not isinstance(patch, WeightPatch) for patch in ledger):
        return None
    squares = [float(added_to_weight(lm, site).square().sum()) for site in sorted(sites, key=str)]
    return sum(squares) ** 0.5


def build_measurements(
    run: str,
    label: str,
    cases: Sequence[Case],
    moved: Sequence[float | None],
    *,
    in_sequence: bool = False,
    failed: str = "",
) -> list[Measurement]:
    """Return distances after the edit and the edit back: of the weights, and of a graph of facts.

    Args:
        run: Id of the run.
        label: Name of the unit of work in measurements.
        cases: Its cases, all of them round trips.
        moved: `measure_distance` after each round.
        in_sequence: Whether edits of other cases are in force too.
        failed: Why an edit failed; empty where none did.
    """
    found = [
        Measurement(run=run, case=case.id, name=GRAPH, values=[*map(float, _graph_distances(case))])
        for case in cases
    ]
    known = [one for one in moved if one is not None]
    reason = failed or (IN_SEQUENCE if in_sequence else "")
    if len(known) < len(moved):
        reason = reason or NOT_WEIGHTS
    values = [] if reason else known
    return [*found, Measurement(run=run, case=label, name=RESIDUAL, values=values, skipped=reason)]


def _graph_distances(case: Case) -> tuple[int, int]:
    """Return the distances of a graph of the facts, in which a fact replaces another."""
    there, back = case.edits
    original = {_make_triple(fact, fact.before) for fact in there}
    original |= {_make_triple(fact, fact.target) for fact in back}
    graph = set(original)
    distances: list[int] = []
    for facts in (there, back):
        graph -= {_make_triple(fact, fact.before) for fact in facts}
        graph |= {_make_triple(fact, fact.target) for fact in facts}
        distances.append(graph_distance(original, graph))
    return distances[0], distances[1]


def _make_triple(fact: Fact, value: str | None) -> Triple:
    return (fact.subject or "", fact.prompt, value or "")
