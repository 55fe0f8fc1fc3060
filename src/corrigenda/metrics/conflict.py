"""Edits that affect each other: ConflictEdit's pairs and RoundEdit's round trips.

The facts of a case are edited in rounds, one on top of the other; rows say after how many rounds
they were asked. P~ of a fact is averaged over its prompts (the rewrite prompt and templates).
Protocol `rank` throughout.

| role | fact |
|---|---|
| `conflict/old` | k_o: that of the first edit |
| `conflict/new` | k_n: that of the second edit, which must win |
| `conflict/implied` | k_n as a consequence of the second edit, put as the first |
| `conflict/tied` | k_f: the fact that ties both edits (composite) |
| `conflict/single` | that of the second edit, made alone, against that of the first |
| `round/there` | after round 1: the passing object, against the true one |
| `round/back` | after round 2: the true object that is restored, against the passing one |
| `round/true_object` | every true object, the restored one among them |
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from corrigenda.cases import Protocol
from corrigenda.metrics.estimate import (
    BOOTSTRAP,
    AnswerValue,
    Bootstrap,
    Estimate,
    mean,
    over_cases,
)
from corrigenda.metrics.metric import DIFFERENCE, LOWER, Metric, define
from corrigenda.metrics.selection import NOT_COMPARED, probability, required_log_probs, select
from corrigenda.metrics.success import metric_name, rival_probabilities
from corrigenda.rows import Row

OLD, NEW, IMPLIED = "conflict/old", "conflict/new", "conflict/implied"
TIED, ALONE = "conflict/tied", "conflict/single"
THERE, BACK, TRUE_OBJECT = "round/there", "round/back", "round/true_object"

NO_COUNTERPART = "the fact it is compared with was not asked"
ZERO_BEFORE = "P~ was 0 before"
NO_OBJECTS = "not the restored object and others"
_LEAST_MAGNITUDE = -1.0
_NAMES = {"divergence": "distortion", "ignored": "ignore_rate", "failed": "failure_rate"}


class Distortion(NamedTuple):
    """Distortion of the true objects of one case by a round trip.

    Attributes:
        divergence: D, Jensen-Shannon divergence of P~ over the objects, normalised, in nats.
        ignored: IR, share of the objects other than the restored one that lost P~.
        failed: FR, 1 if more than half of them did.
    """

    divergence: float
    ignored: float
    failed: float


def conflict_score(
    rows: Sequence[Row], *, implied: bool = False, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """CS: share of cases whose second fact is more probable than the first after both edits.

    Ties fail.

    Args:
        rows: Of one run.
        implied: CS_imp, for the consequence of the second edit put as the first, instead of CS_exp.
            Explicit scores compare probabilities given different prompts.
        bootstrap: How to find the interval.
    """
    old, skipped = _probability_by_case(rows, OLD, rounds=2)
    new, more = _probability_by_case(rows, IMPLIED if implied else NEW, rounds=2)
    skipped += more
    skipped[NO_COUNTERPART] += len(set(old) ^ set(new))
    items = [
        AnswerValue(case, float(new[case] > old[case])) for case in sorted(set(old) & set(new))
    ]
    name = "conflict_score_implied" if implied else "conflict_score"
    return _estimate(name, items, skipped, bootstrap, answers=2 * len(items))


def conflict_magnitude(
    rows: Sequence[Row], *, clipped: bool = True, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """CM: share of the first fact's P~ that the second edit takes away.

    (P_m(k_o) - P'(k_o)) / P_m(k_o), P_m after the first edit and P' after both.

    Args:
        rows: Of one run.
        clipped: At -1 in each case, as published.
        bootstrap: How to find the interval.
    """
    middle, skipped = _probability_by_case(rows, OLD, rounds=1)
    final, more = _probability_by_case(rows, OLD, rounds=2)
    skipped += more
    items = _relative_losses(middle, final, skipped)
    if clipped:
        items = [AnswerValue(one.case, max(one.value, _LEAST_MAGNITUDE)) for one in items]
    name = "conflict_magnitude" if clipped else "conflict_magnitude_unclipped"
    return _estimate(name, items, skipped, bootstrap, answers=2 * len(items), share=False)


def tied_fact_damage(
    rows: Sequence[Row], *, intermediate: bool = False, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """TFD: share of the tied fact's P~ that is lost, (P(k_f) - P'(k_f)) / P(k_f); lower is better.

    Args:
        rows: Of one run.
        intermediate: Take P after the first edit, as the paper defines its symbol, instead of that
            of the unedited model, as its table does.
        bootstrap: How to find the interval.
    """
    final, skipped = _probability_by_case(rows, TIED, rounds=2)
    if intermediate:
        start, more = _probability_by_case(rows, TIED, rounds=1)
        skipped += more
    else:
        start, _ = _probability_by_case(rows, TIED, rounds=2, before=True)
    name = "tied_fact_damage_intermediate" if intermediate else "tied_fact_damage"
    items = _relative_losses(start, final, skipped)
    return _estimate(name, items, skipped, bootstrap, answers=2 * len(items), share=False)


def success_alone(rows: Sequence[Row], *, bootstrap: Bootstrap = BOOTSTRAP) -> Estimate:
    """Success ("Single"): share of second facts that win against the first when edited alone."""
    found, skipped = select(rows, ALONE, protocol=Protocol.RANK)
    items = [AnswerValue(*one) for one in _wins_by_case(found).items()]
    return _estimate("success_alone", items, skipped, bootstrap, answers=len(found))


def round_success(rows: Sequence[Row], *, bootstrap: Bootstrap = BOOTSTRAP) -> Estimate:
    """RoundEdit's success: half a point for each of the two edits whose object wins."""
    items: list[AnswerValue] = []
    skipped: Counter[str] = Counter()
    answers = 0
    for rounds, role in ((1, THERE), (2, BACK)):
        found, more = select(rows, role, protocol=Protocol.RANK, rounds=rounds)
        skipped += more
        answers += len(found)
        items += [AnswerValue(case, value, role) for case, value in _wins_by_case(found).items()]
    return _estimate("round_success", items, skipped, bootstrap, answers=answers)


def round_distortion(
    rows: Sequence[Row],
    *,
    part: str = "divergence",
    bits: bool = False,
    legacy_mean: bool = False,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """D, IR or FR: change of the true objects that a round trip leaves; lower is better.

    Args:
        rows: Of one run.
        part: "divergence", "ignored" or "failed".
        bits: The divergence in bits instead of nats.
        legacy_mean: The divergence divided by the number of objects, as published; then it cannot
            exceed ln 2 over that number.
        bootstrap: How to find the interval.
    """
    restored = {row.case: _object_of(row) for row in rows if row.role == BACK}
    found, skipped = select(rows, TRUE_OBJECT, protocol=Protocol.RANK, rounds=2)
    objects: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in found:
        if not row.log_probs_before:
            skipped[NOT_COMPARED] += 1
            continue
        known = objects.setdefault(row.case, {}).setdefault(_object_of(row), [])
        known.append((probability(row.log_probs_before), probability(required_log_probs(row))))
    items: list[AnswerValue] = []
    for case, own in objects.items():
        if len(own) < 2 or restored.get(case) not in own:
            skipped[NO_OBJECTS] += 1
            continue
        ordered = sorted(own.items(), key=lambda one: one[0] != restored[case])
        before = [mean(first for first, _ in pairs) for _, pairs in ordered]
        after = [mean(second for _, second in pairs) for _, pairs in ordered]
        value = getattr(distortion(before, after), part)
        if part == "divergence":
            value /= (math.log(2) if bits else 1) * (len(ordered) if legacy_mean else 1)
        items.append(AnswerValue(case, value))
    flags = ("_bits" if bits else "") + ("_legacy" if legacy_mean else "")
    return _estimate(_NAMES[part] + flags, items, skipped, bootstrap, answers=len(found))


def distortion(before: Sequence[float], after: Sequence[float]) -> Distortion:
    """Distortion from P~ of the true objects, the restored one first.

    The divergence reads normalised, the ignore rate raw P~.

    Example:
        >>> round(distortion([0.2, 0.1, 0.1], [0.6, 0.05, 0.15]).divergence, 6)
        0.044941
    """
    p = [value / math.fsum(before) for value in before]
    q = [value / math.fsum(after) for value in after]
    ignored = mean(float(x > y) for x, y in zip(before[1:], after[1:], strict=True))
    return Distortion(jensen_shannon(p, q), ignored, float(ignored > 0.5))


def jensen_shannon(p: Sequence[float], q: Sequence[float]) -> float:
    """Jensen-Shannon divergence of two distributions in nats; at most ln 2."""
    middle = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    terms = [
        value * math.log(value / m) / 2
        for values in (p, q)
        for value, m in zip(values, middle, strict=True)
        if value
    ]
    return max(0.0, math.fsum(terms))


def _probability_by_case(
    rows: Sequence[Row], role: str, *, rounds: int, before: bool = False
) -> tuple[dict[str, float], Counter[str]]:
    """P~ of a fact by case, mean over its prompts."""
    found, skipped = select(rows, role, protocol=Protocol.RANK, rounds=rounds)
    values: dict[str, list[float]] = {}
    for row in found:
        log_probs = row.log_probs_before if before else required_log_probs(row)
        if log_probs:
            values.setdefault(row.case, []).append(probability(log_probs))
    return {case: mean(own) for case, own in values.items()}, skipped


def _wins_by_case(found: Sequence[Row]) -> dict[str, float]:
    """1 by case where P~ of the expected answer, mean over prompts, is above its rival's."""
    own: dict[str, list[float]] = {}
    rival: dict[str, list[float]] = {}
    for row in found:
        rivals = rival_probabilities(row)
        if rivals:
            own.setdefault(row.case, []).append(probability(required_log_probs(row)))
            rival.setdefault(row.case, []).append(max(rivals))
    return {case: float(mean(values) > mean(rival[case])) for case, values in own.items()}


def _relative_losses(
    start: dict[str, float], end: dict[str, float], skipped: Counter[str]
) -> list[AnswerValue]:
    skipped[NO_COUNTERPART] += len(set(start) ^ set(end))
    common = sorted(set(start) & set(end))
    skipped[ZERO_BEFORE] += sum(start[case] == 0 for case in common)
    return [
        AnswerValue(case, (start[case] - end[case]) / start[case]) for case in common if start[case]
    ]


def _object_of(row: Row) -> str:
    return row.expected[0][0] if row.expected else str(row.probe)


def _estimate(
    name: str,
    items: Sequence[AnswerValue],
    skipped: Counter[str],
    bootstrap: Bootstrap,
    answers: int,
    *,
    share: bool = True,
) -> Estimate:
    return over_cases(
        metric_name(name, Protocol.RANK),
        items,
        skipped={reason: count for reason, count in skipped.items() if count},
        bootstrap=bootstrap,
        answers=answers,
        share=share,
    )


_UNBOUNDED = (None, 1.0)

METRICS: tuple[Metric, ...] = (
    define("conflict_score@rank", "the later edit wins", conflict_score, reads=NEW),
    define(
        "conflict_score_implied@rank",
        "the later edit's consequence wins",
        conflict_score,
        reads=IMPLIED,
        options={"implied": True},
    ),
    define(
        "conflict_magnitude@rank",
        "probability taken from the earlier edit, clipped at -1",
        conflict_magnitude,
        reads=OLD,
        span=DIFFERENCE,
    ),
    define(
        "conflict_magnitude_unclipped@rank",
        "probability taken from the earlier edit",
        conflict_magnitude,
        reads=OLD,
        span=_UNBOUNDED,
        options={"clipped": False},
    ),
    *(
        define(
            f"tied_fact_damage{'_intermediate' if intermediate else ''}@rank",
            "probability the tying fact loses",
            tied_fact_damage,
            reads=TIED,
            better=LOWER,
            span=_UNBOUNDED,
            options={"intermediate": intermediate},
        )
        for intermediate in (False, True)
    ),
    define("success_alone@rank", "the later edit alone wins", success_alone, reads=ALONE),
    define("round_success@rank", "both edits of a round trip succeed", round_success, reads=BACK),
    *(
        define(
            f"{name}@rank",
            "what a round trip leaves among true objects",
            round_distortion,
            reads=TRUE_OBJECT,
            better=LOWER,
            options={"part": part},
        )
        for part, name in _NAMES.items()
    ),
    define(
        "distortion_legacy@rank",
        "the same, divided by the number of objects",
        round_distortion,
        reads=TRUE_OBJECT,
        better=LOWER,
        legacy=True,
        options={"legacy_mean": True},
    ),
)
