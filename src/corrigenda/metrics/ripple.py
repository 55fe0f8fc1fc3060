"""Consequences of an edit: the criteria of RippleEdits, and the many hops of MQuAKE."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from corrigenda.cases import Protocol
from corrigenda.metrics.estimate import (
    BOOTSTRAP,
    AnswerValue,
    Bootstrap,
    Estimate,
    mean,
    over_cases,
    ratio_of_sums,
    statistic,
)
from corrigenda.metrics.metric import LOWER, Metric, define
from corrigenda.metrics.selection import as_before, required_answer, select
from corrigenda.metrics.strings import begins_with, contains, equals, is_answer, normalise
from corrigenda.metrics.success import (
    CONDITION_FAILS,
    as_tests,
    failing_conditions,
    measure_named,
    metric_name,
    success,
)
from corrigenda.rows import Row, Stage

CRITERIA: Mapping[str, str] = {
    "logical_generalization": "portability/logical_generalization",
    "compositionality_1": "portability/compositionality_1",
    "compositionality_2": "portability/compositionality_2",
    "subject_aliasing": "portability/subject_aliasing",
    "preservation": "locality/forgetfulness",
    "relation_specificity": "locality/relation_specificity",
}
"""The six criteria (LG, CI, CII, SA, PV, RS) and the roles of their tests."""

CHAIN, QUESTIONS = "portability/chain", "portability/multi_hop"
"""Roles of the facts on a chain, and of the questions over it."""

EDIT_FAILS = "the edit itself did not succeed"
_SHORTEST_ALIAS = 3
_POOLINGS: dict[str, Callable[[list[float]], float]] = {"any": max, "all": min, "mean": mean}


def ripple_accuracy(
    rows: Sequence[Row],
    criterion: str,
    *,
    only_successful: bool = True,
    legacy: bool = False,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Share of a case's executed tests that pass, mean over cases.

    A test is executed where its conditions hold for the unedited model; a query is right if the
    continuation contains a spelling of every group. Spellings of fewer than three characters count
    only as the whole first sentence.

    Args:
        rows: Of one run, greedy.
        criterion: A key of `CRITERIA`, or a role.
        only_successful: Leave out cases whose edit did not succeed, as published. That hides weak
            editors; show the other number too.
        legacy: As the released program matches: any substring, case counts, the prompt is searched
            too, spellings of one character count only if digits.
        bootstrap: How to find the interval.
    """
    role = CRITERIA.get(criterion, criterion)
    found, skipped = select(rows, role, protocol=Protocol.GREEDY)
    edited = success(rows, "reliability", protocol=Protocol.GREEDY, measure="contains").by_case
    failing = failing_conditions(rows)
    valued: list[tuple[Row, float]] = []
    for row in found:
        if (row.case, row.test) in failing and row.test:
            skipped[CONDITION_FAILS] += 1
        elif only_successful and edited.get(row.case, 0) != 1:
            skipped[EDIT_FAILS] += 1
        else:
            right = _matches_as_published(row) if legacy else _matches_all(row)
            valued.append((row, float(right)))
    flags = ("" if only_successful else "_unconditional") + ("_legacy" if legacy else "")
    name = metric_name(f"{criterion}{flags}", Protocol.GREEDY, "contains")
    return over_cases(name, as_tests(valued, role), skipped=skipped, bootstrap=bootstrap)


def edit_wise(
    rows: Sequence[Row],
    *,
    protocol: Protocol = Protocol.GREEDY,
    measure: str | None = None,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Share of edited facts that are recalled, over all facts of all cases (MQuAKE).

    The interval resamples cases. Reads `reliability`; show other measures with the default.
    """
    found, skipped = select(rows, "reliability", protocol=protocol)
    decide = measure_named(protocol, measure)
    totals: dict[str, list[float]] = {}
    for row in found:
        value = decide(row)
        if isinstance(value, str):
            skipped[value] += 1
            continue
        own = totals.setdefault(row.case, [0.0, 0.0])
        own[0] += value
        own[1] += 1
    return statistic(
        metric_name("edit_wise", protocol, measure),
        totals,
        ratio_of_sums,
        items=int(sum(count for _, count in totals.values())),
        skipped=skipped,
        bootstrap=bootstrap,
        by_case={case: total / count for case, (total, count) in totals.items()},
        share=True,
    )


def instance_wise(
    rows: Sequence[Row], *, role: str = CHAIN, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """Share of cases whose every fact on the new chain is recalled (MQuAKE)."""
    found, skipped = select(rows, role, protocol=Protocol.GREEDY)
    recalled: dict[str, list[float]] = {}
    for row in found:
        recalled.setdefault(row.case, []).append(float(_matches_any(row, begins_with)))
    items = [AnswerValue(case, min(values)) for case, values in recalled.items()]
    name = metric_name("instance_wise", Protocol.GREEDY)
    return over_cases(name, items, skipped=skipped, bootstrap=bootstrap, answers=len(found))


def multi_hop(
    rows: Sequence[Row],
    *,
    pooling: str = "any",
    stale: bool = False,
    role: str = QUESTIONS,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Share of cases whose questions over several hops get the new answer (MQuAKE).

    Args:
        rows: Of one run, greedy.
        pooling: How the phrasings of a case count: "any" as published, which inflates, "all" or
            "mean".
        stale: Count the old answers (the rivals) instead; lower is better.
        role: Role of the questions.
        bootstrap: How to find the interval.
    """
    found, skipped = select(rows, role, protocol=Protocol.GREEDY)
    answered: dict[str, list[float]] = {}
    for row in found:
        text = required_answer(row)
        right = any(equals(text, one) for one in row.rivals) if stale else _matches_any(row, equals)
        answered.setdefault(row.case, []).append(float(right))
    items = [AnswerValue(case, _POOLINGS[pooling](values)) for case, values in answered.items()]
    name = metric_name("multi_hop_stale" if stale else "multi_hop", Protocol.GREEDY, pooling)
    return over_cases(name, items, skipped=skipped, bootstrap=bootstrap, answers=len(found))


def multi_hop_given_instance(
    rows: Sequence[Row], *, pooling: str = "any", bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """`multi_hop` over the cases whose every fact on the chain is recalled."""
    chain = instance_wise(rows, bootstrap=bootstrap).by_case
    recalled = [row for row in rows if chain.get(row.case) == 1]
    found = multi_hop(recalled, pooling=pooling, bootstrap=bootstrap)
    name = metric_name("multi_hop_given_instance", Protocol.GREEDY, pooling)
    return over_cases(
        name,
        [AnswerValue(case, value) for case, value in found.by_case.items()],
        skipped={**found.skipped, "a fact of the chain is not recalled": len(chain) - found.n},
        bootstrap=bootstrap,
    )


def unobservable(rows: Sequence[Row], *, role: str = QUESTIONS) -> set[str]:
    """Return the cases whose new answer is one of the old ones, so that no edit can be seen."""
    found, _ = select(rows, role, protocol=Protocol.GREEDY)
    return {
        row.case
        for row in found
        if {normalise(one) for group in row.expected for one in group}
        & {normalise(one) for one in row.rivals}
    }


def known_to_the_unedited_model(rows: Sequence[Row], role: str) -> set[str]:
    """Return cases whose every answer of a role the unedited model gave (prefix, greedy)."""
    found, _ = select(as_before(rows), role, protocol=Protocol.GREEDY, stage=Stage.BEFORE)
    wrong = {row.case for row in found if not _matches_any(row, begins_with)}
    return {row.case for row in found} - wrong


def _matches_any(row: Row, decide: Callable[[str, str], bool]) -> bool:
    text = required_answer(row)
    return any(decide(text, one) for group in row.expected for one in group)


def _matches_all(row: Row) -> bool:
    text = required_answer(row)
    return bool(row.expected) and all(
        any(
            contains(text, one) if len(one) >= _SHORTEST_ALIAS else is_answer(text, one)
            for one in group
        )
        for group in row.expected
    )


def _matches_as_published(row: Row) -> bool:
    text = row.prompt + required_answer(row)
    return bool(row.expected) and all(
        any(one in text for one in group if len(one) > 1 or one.isdigit()) for group in row.expected
    )


METRICS: tuple[Metric, ...] = (
    *(
        define(
            f"{criterion}{suffix}@greedy:contains",
            "tests of consequences that pass",
            ripple_accuracy,
            criterion,
            reads=role,
            legacy="legacy" in options,
            options=options,
        )
        for criterion, role in CRITERIA.items()
        for suffix, options in (
            ("", {}),
            ("_unconditional", {"only_successful": False}),
            ("_legacy", {"legacy": True}),
        )
    ),
    define("edit_wise@greedy", "edited facts recalled", edit_wise, reads="reliability"),
    define(
        "instance_wise@greedy",
        "cases with every fact of the chain recalled",
        instance_wise,
        reads=CHAIN,
    ),
    *(
        define(
            f"multi_hop@greedy:{pooling}",
            "questions over several hops",
            multi_hop,
            reads=QUESTIONS,
            options={"pooling": pooling},
        )
        for pooling in ("any", "all", "mean")
    ),
    define(
        "multi_hop_stale@greedy:any",
        "questions over several hops with the old answer",
        multi_hop,
        reads=QUESTIONS,
        better=LOWER,
        options={"stale": True},
    ),
    define(
        "multi_hop_given_instance@greedy:any",
        "the same, where every fact of the chain is recalled",
        multi_hop_given_instance,
        reads=QUESTIONS,
    ),
)
