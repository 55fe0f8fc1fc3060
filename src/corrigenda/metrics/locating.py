"""Reliability of locating (KLoB): similarity of places, relative to chance.

A place is what a locator gives for one prompt: the k layers (or parameters) with the largest
effect, as `values` of a measurement. Overlap has the chance level k / L, and neighbouring layers
are found together, so show both with the relative numbers.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence

import numpy as np

from corrigenda.metrics.estimate import (
    BOOTSTRAP,
    Bootstrap,
    Estimate,
    Numbers,
    mean,
    statistic,
)
from corrigenda.metrics.metric import Metric, define
from corrigenda.metrics.selection import measurements
from corrigenda.rows import Measurement

Place = Sequence[float]


def overlap(first: Place, second: Place) -> float:
    """|A and B| / k, for places of equal size k.

    Example:
        >>> round(overlap([3, 4, 5], [4, 5, 6]), 4)
        0.6667
    """
    assert len(first) == len(second), "places are compared at equal size"
    return len(set(first) & set(second)) / len(first)


def jaccard(first: Place, second: Place) -> float:
    """|A and B| / |A or B|."""
    return len(set(first) & set(second)) / len(set(first) | set(second))


def adjusted_overlap(value: float, k: int, num_layers: int) -> float:
    """Overlap above its chance level k / L, as a share of what is possible above it."""
    chance = k / num_layers
    return (value - chance) / (1 - chance) if chance < 1 else 0.0


def relative_similarity(candidate: float, everything: float) -> float:
    """RSim = max((Sim_cand - Sim_all) / (1 - Sim_all), 0); 0 where all places are alike.

    Args:
        candidate: Mean similarity of places that should agree.
        everything: Mean similarity to all places.

    Example:
        >>> round(relative_similarity(0.8, 0.5), 6)
        0.6
    """
    if everything >= 1:
        return 0.0
    return max((candidate - everything) / (1 - everything), 0.0)


def relative_deviation(factual: float, nonfactual: float) -> float:
    """RSD = max(1 - SD_nonfactual / SD_factual, 0); 0 where factual text shows no preference.

    Example:
        >>> relative_deviation(0.4, 0.1)
        0.75
    """
    return max(1 - nonfactual / factual, 0.0) if factual else 0.0


def locating_consistency(
    records: Sequence[Measurement],
    name: str = "locating/consistency",
    *,
    sample: int = 1000,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """RSim of the sentences of one fact (KLoB-c), from the means over facts.

    Args:
        records: Of one run; `case` is the fact, one measurement for each sentence.
        name: Name of the measurements.
        sample: Most places of other facts that each is compared with, drawn by the seed.
        bootstrap: How to find the interval.
    """
    found, skipped = measurements(records, name)
    places = _places_by_case(found)
    alone = [case for case, own in places.items() if len(own) < 2]
    if alone:
        skipped["only one sentence"] = len(alone)
    cases: dict[str, tuple[float, float]] = {}
    for case, own in places.items():
        if len(own) > 1:
            agreeing = mean(overlap(a, b) for a, b in itertools.combinations(own, 2))
            cases[case] = (
                agreeing,
                _similarity_to_others(case, own, places, sample, bootstrap.seed),
            )
    return _estimate_relative("locating_consistency", cases, len(found), skipped, bootstrap)


def locating_relevance(
    records: Sequence[Measurement],
    chain: str = "locating/relevance_chain",
    member: str = "locating/relevance_single",
    *,
    sample: int = 1000,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """RSim of a chain's place and those of a fact in it (KLoB-r).

    Args:
        records: Of one run; `case` is the chain.
        chain: Name of the measurements of chains.
        member: Name of those of the sentences of their facts.
        sample: As in `locating_consistency`.
        bootstrap: How to find the interval.
    """
    chains, skipped = measurements(records, chain)
    members, more = measurements(records, member)
    skipped += more
    places, own = _places_by_case(members), _places_by_case(chains)
    cases = {
        case: (
            mean(overlap(a, b) for a in own[case] for b in places[case]),
            _similarity_to_others(case, own[case], places, sample, bootstrap.seed),
        )
        for case in own
        if case in places
    }
    return _estimate_relative(
        "locating_relevance", cases, len(chains) + len(members), skipped, bootstrap
    )


def _places_by_case(found: Sequence[Measurement]) -> dict[str, list[list[float]]]:
    places: dict[str, list[list[float]]] = {}
    for one in found:
        places.setdefault(one.case, []).append(one.values)
    return places


def _similarity_to_others(
    case: str, own: Sequence[Place], places: Mapping[str, Sequence[Place]], sample: int, seed: int
) -> float:
    """Mean similarity to the places of other cases; NaN without any."""
    others = [place for name in sorted(places) if name != case for place in places[name]]
    if len(others) > sample:
        others = random.Random(f"{seed}/{case}").sample(others, sample)
    return mean(overlap(a, b) for a in own for b in others)


def _estimate_relative(
    name: str,
    cases: Mapping[str, tuple[float, float]],
    items: int,
    skipped: Mapping[str, int],
    bootstrap: Bootstrap,
) -> Estimate:
    compared = {case: pair for case, pair in cases.items() if not math.isnan(pair[1])}
    alone = len(cases) - len(compared)
    return statistic(
        name,
        compared,
        _relative_of_means,
        items=items,
        skipped={**skipped, **({"no place of another case": alone} if alone else {})},
        bootstrap=bootstrap,
        by_case={case: relative_similarity(*pair) for case, pair in compared.items()},
    )


def _relative_of_means(values: Numbers) -> Numbers:
    candidate, everything = values[..., 0].mean(axis=1), values[..., 1].mean(axis=1)
    room = 1 - everything
    share = np.divide(candidate - everything, room, out=np.zeros_like(room), where=room > 0)
    return np.maximum(share, 0.0)


METRICS: tuple[Metric, ...] = (
    define(
        "locating_consistency",
        "sentences of a fact have one place",
        locating_consistency,
        reads="locating/consistency",
    ),
    define(
        "locating_relevance",
        "chains have the place of their facts",
        locating_relevance,
        reads="locating/relevance_chain",
    ),
)
