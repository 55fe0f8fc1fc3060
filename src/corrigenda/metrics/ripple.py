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

THOUGHTS = "portability/multi_hop_thoughts"
"""Role of the questions that are answered after a chain of thought."""

CHAIN_BEFORE, QUESTIONS_BEFORE = "before/chain", "before/multi_hop"
THOUGHTS_BEFORE = "before/multi_hop_thoughts"
"""The same of the old facts, which only the unedited model is asked."""

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
    """Share of cases whose every fact on the new chain is recalled (MQuAKE).

    Args:
        rows: Of one run, greedy.
        role: Role of the facts; of `CHAIN_BEFORE`, the old chain and the unedited model.
        bootstrap: How to find the interval.
    """
    found, skipped = select(rows, role, protocol=Protocol.GREEDY, stage=_stage_of(role))
    recalled: dict[str, list[float]] = {}
    for row in found:
        recalled.setdefault(row.case, []).append(float(_matches_any(row, begins_with)))
    items = [AnswerValue(case, min(values)) for case, values in recalled.items()]
    name = metric_name("instance_wise" + _BEFORE_SUFFIX[_stage_of(role)], Protocol.GREEDY)
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
        role: Role of the questions; of those in `before`, the old answer and the unedited model.
        bootstrap: How to find the interval.
    """
    found, skipped = select(rows, role, protocol=Protocol.GREEDY, stage=_stage_of(role))
    answered: dict[str, list[float]] = {}
    for row in found:
        text = required_answer(row)
        right = any(equals(text, one) for one in row.rivals) if stale else _matches_any(row, equals)
        answered.setdefault(row.case, []).append(float(right))
    items = [AnswerValue(case, _POOLINGS[pooling](values)) for case, values in answered.items()]
    ending = "_stale" if stale else _BEFORE_SUFFIX[_stage_of(role)]
    name = metric_name(role.partition("/")[2] + ending, Protocol.GREEDY, pooling)
    return over_cases(name, items, skipped=skipped, bootstrap=bootstrap, answers=len(found))


def multi_hop_given_instance(
    rows: Sequence[Row],
    *,
    pooling: str = "any",
    role: str = QUESTIONS,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """`multi_hop` over the cases whose every fact on the chain is recalled."""
    chain = instance_wise(rows, bootstrap=bootstrap).by_case
    recalled = [row for row in rows if chain.get(row.case) == 1]
    found = multi_hop(recalled, pooling=pooling, role=role, bootstrap=bootstrap)
    name = metric_name(f"{role.partition('/')[2]}_given_instance", Protocol.GREEDY, pooling)
    return over_cases(
        name,
        [AnswerValue(case, value) for case, value in found.by_case.items()],
        skipped={**found.skipped, "a fact of the chain is not recalled": len(chain) - found.n},
        bootstrap=bootstrap,
    )


_BEFORE_SUFFIX = {Stage.BEFORE: "_before", Stage.AFTER: ""}


def _stage_of(role: str) -> Stage:
    """Return the model that is asked questions of a role."""
    return Stage.BEFORE if role.startswith("before/") else Stage.AFTER


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


def _define_questions(role: str, title: str) -> tuple[Metric, ...]:
    name = role.partition("/")[2]
    return (
        *(
            define(
                f"{name}@greedy:{pooling}",
                title,
                multi_hop,
                reads=role,
                options={"pooling": pooling, "role": role},
            )
            for pooling in _POOLINGS
        ),
        define(
            f"{name}_stale@greedy:any",
            f"{title}, with the old answer",
            multi_hop,
            reads=role,
            better=LOWER,
            options={"stale": True, "role": role},
        ),
        define(
            f"{name}_given_instance@greedy:any",
            f"{title}, where every fact of the chain is recalled",
            multi_hop_given_instance,
            reads=role,
            options={"role": role},
        ),
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
    *_define_questions(QUESTIONS, "questions over several hops"),
    *_define_questions(THOUGHTS, "questions over several hops, after a chain of thought"),
    define(
        "instance_wise_before@greedy",
        "cases with every old fact known to the unedited model",
        instance_wise,
        reads=CHAIN_BEFORE,
        options={"role": CHAIN_BEFORE},
    ),
    *(
        define(
            f"{role.partition('/')[2]}_before@greedy:any",
            "old answers of the unedited model to questions over several hops",
            multi_hop,
            reads=role,
            options={"role": role},
        )
        for role in (QUESTIONS_BEFORE, THOUGHTS_BEFORE)
    ),
)
