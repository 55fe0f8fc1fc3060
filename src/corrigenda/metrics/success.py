"""Success of an edit: reliability, generalization, portability.

The same question has several measures that are no substitutes for each other; each belongs to a
protocol, and the first of a protocol is the one meant where a name gives none:

| name | 1 where |
|---|---|
| `@teacher_forced:tokens` | share of expected tokens that are the argmax, the right ones fed |
| `@teacher_forced:exact` | all of them are |
| `@greedy:prefix` | the continuation begins with the expected answer |
| `@greedy:exact` | its first sentence or line is the expected answer |
| `@greedy:whole` | all of it is the expected answer |
| `@greedy:contains` | the expected answer occurs in it |
| `@greedy:tokens` | share of its first m tokens that are those of the answer of m tokens |
| `@generate`, `@chat` | natural answers, judged whole: see `natural` |
| `@rank:preferred` | P~ of the expected answer is greater than that of every rival |

All tokens right under teacher forcing means that greedy decoding gives the answer; fewer do
not tell what is generated after them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from corrigenda.cases import GENERATED, NATURAL, Protocol
from corrigenda.errors import MalformedRows, UnknownMetric, did_you_mean
from corrigenda.metrics import natural
from corrigenda.metrics.estimate import (
    BOOTSTRAP,
    AnswerValue,
    Bootstrap,
    Estimate,
    mean,
    over_cases,
)
from corrigenda.metrics.metric import Metric, define, list_measures
from corrigenda.metrics.published_strings import (
    published_begins_with,
    published_contains,
    published_equals,
    published_normalise,
)
from corrigenda.metrics.selection import (
    as_before,
    probability,
    required_answer,
    required_ids,
    required_log_probs,
    select,
)
from corrigenda.metrics.strings import begins_with, contains, equals, has_characters, is_answer
from corrigenda.rows import Row, Stage

Measure = Callable[[Row], "float | str"]
"""Value of an answer in [0, 1], or why it has none."""

NO_WORDS = "no words in the expected answer"
NO_TOKENS = "the tokens of the text were not recorded"
NO_RIVAL = "no rival to compare with"
SEVERAL_ANSWERS = "several answers expected: only `contains` can tell"
CONDITION_FAILS = "a condition does not hold for the unedited model"


def token_share(row: Row) -> float:
    """Share of the expected tokens that are predicted, the right ones fed (`tf_token`)."""
    wanted, given = required_ids(row, "token_ids"), required_ids(row, "predicted")
    _require_target(row, wanted)
    return mean(float(a == b) for a, b in zip(wanted, given, strict=True))


def all_tokens(row: Row) -> float:
    """1 if every expected token is predicted, the right ones fed (`tf_exact`)."""
    return float(token_share(row) == 1)


def generated_tokens(row: Row) -> float | str:
    """Share of the expected tokens at their place among those generated (`gen_len`)."""
    wanted, given = row.token_ids, row.predicted
    if wanted is None or given is None:
        return NO_TOKENS
    _require_target(row, wanted)
    return sum(a == b for a, b in zip(wanted, given, strict=False)) / len(wanted)


def generated_exactly(row: Row) -> float | str:
    """1 if the first sentence or line of the continuation is an expected spelling."""
    return _decide_one_group(row, is_answer)


def generated_alone(row: Row) -> float | str:
    """1 if the whole continuation is an expected spelling (`em`)."""
    return _decide_one_group(row, equals)


def generated_first(row: Row) -> float | str:
    """1 if the continuation begins with an expected spelling (`prefix`)."""
    return _decide_one_group(row, begins_with)


def generated_anywhere(row: Row) -> float | str:
    """1 if the continuation contains a spelling of every expected group (`contains`)."""
    return _decide_all_groups(row, contains)


def published_exactly(row: Row) -> float | str:
    """1 if the whole continuation is an expected spelling, by the rule of published programs."""
    return _decide_one_group(row, published_equals, published_normalise)


def published_first(row: Row) -> float | str:
    """1 if the continuation begins with an expected spelling, by the rule of published programs."""
    return _decide_one_group(row, published_begins_with, published_normalise)


def published_anywhere(row: Row) -> float | str:
    """1 if the continuation contains every expected group, by the rule of published programs."""
    return _decide_all_groups(row, published_contains, published_normalise)


def preferred(row: Row) -> float | str:
    """1 if the expected answer is strictly more probable per token than every rival (`prob`)."""
    own, rivals = probability(required_log_probs(row)), rival_probabilities(row)
    return float(own > max(rivals)) if rivals else NO_RIVAL


def rival_probabilities(row: Row, *, normalization: str = "mean") -> list[float]:
    """P~ of each rival; none where the row has no rival.

    Raises:
        MalformedRows (CG507): a rival has no log-probabilities.
    """
    rivals = row.rival_log_probs or []
    if not all(rivals) or (row.rivals and not rivals):
        raise MalformedRows(
            "a rank needs the log-probabilities of every rival.",
            where=row.label,
            hint="Score each of `rivals` as the expected answer is scored.",
        )
    return [probability(one, normalization=normalization) for one in rivals]


MEASURES: dict[Protocol, dict[str, Measure]] = {
    Protocol.TEACHER_FORCED: {"tokens": token_share, "exact": all_tokens},
    Protocol.GREEDY: {
        "prefix": generated_first,
        "exact": generated_exactly,
        "contains": generated_anywhere,
        "tokens": generated_tokens,
        "whole": generated_alone,
        "exact_legacy": published_exactly,
        "prefix_legacy": published_first,
        "contains_legacy": published_anywhere,
    },
    Protocol.RANK: {"preferred": preferred},
    **{protocol: natural.MEASURES for protocol in NATURAL},
}
"""Measures by protocol and name; the first of a protocol is its default."""


def measure_named(protocol: Protocol, name: str | None = None) -> Measure:
    """Return a measure by its name, or the default of a protocol.

    Raises:
        UnknownMetric (CG505): the protocol has no measure by that name.
    """
    known = MEASURES.get(protocol, {})
    if not known:
        raise UnknownMetric(
            f"answers under {protocol} are not expected to be anything.",
            hint="Ask under another protocol.",
        )
    if name is None:
        return next(iter(known.values()))
    if name not in known:
        raise UnknownMetric(
            f'{protocol} has no measure "{name}".', hint=did_you_mean(name, [*known])
        )
    return known[name]


def metric_name(role: str, protocol: Protocol, measure: str | None = None) -> str:
    """Return the name of a metric, with its protocol.

    Example:
        >>> metric_name("reliability", Protocol.GREEDY, "contains")
        'reliability@greedy:contains'
    """
    return f"{role}@{protocol}" + (f":{measure}" if measure else "")


def success(
    rows: Sequence[Row],
    role: str,
    *,
    protocol: Protocol,
    measure: str | None = None,
    stage: Stage = Stage.AFTER,
    rounds: int | None = None,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Mean over cases of how well the expected answers of a role are given.

    Tests of several probes count once (the least of them where all must pass, else the best), and
    only where the conditions of the test hold for the unedited model.

    Args:
        rows: Of one run.
        role: Role, or family of roles; the kinds of a family weigh the same within a case.
        protocol: How the answers were taken.
        measure: Name of a measure of the protocol.
        stage: AFTER for the edited model, BEFORE for rows of the unedited one.
        rounds: Rounds of the case done; None takes all.
        bootstrap: How to find the interval.

    Raises:
        MixedRows (CG506): rows of several runs, or two answers to one probe.
        MalformedRows (CG507): an answer without what the measure reads, or no expected answer.
        UnknownMetric (CG505): the protocol has no measure by that name.

    Example:
        >>> row = Row(case="1", role="reliability", protocol=Protocol.TEACHER_FORCED,
        ...           token_ids=[11, 12, 13], predicted=[11, 12, 99])
        >>> round(success([row], "reliability", protocol=Protocol.TEACHER_FORCED).value, 4)
        0.6667
    """
    found, skipped = select(rows, role, protocol=protocol, stage=stage, rounds=rounds)
    decide = measure_named(protocol, measure)
    failing = failing_conditions(rows)
    valued: list[tuple[Row, float]] = []
    for row in found:
        if row.test and (row.case, row.test) in failing:
            skipped[CONDITION_FAILS] += 1
            continue
        value = decide(row)
        if isinstance(value, str):
            skipped[value] += 1
        else:
            valued.append((row, value))
    name = metric_name(role, protocol, measure)
    return over_cases(name, as_tests(valued, role), skipped=skipped, bootstrap=bootstrap)


def as_tests(valued: Iterable[tuple[Row, float]], role: str) -> list[AnswerValue]:
    """Pool values of answers to tests: the least where all must pass, else the best.

    Args:
        valued: Rows with their values.
        role: Kinds are what the rows' roles have beyond this.
    """
    grouped: dict[tuple[str, str, str], list[tuple[Row, float]]] = {}
    for row, value in valued:
        part = row.test or f"\0{row.probe}\0{row.rounds}"
        grouped.setdefault((row.case, row.role, part), []).append((row, value))
    return [
        AnswerValue(
            case,
            (min if own[0][0].every else max)(value for _, value in own),
            kind.removeprefix(role),
        )
        for (case, kind, _), own in grouped.items()
    ]


def failing_conditions(rows: Iterable[Row]) -> set[tuple[str, str]]:
    """Return the tests (case, test) whose condition the unedited model fails or was not asked."""
    failing: set[tuple[str, str]] = set()
    for row in rows:
        if row.role == "condition":
            held = (
                (
                    generated_anywhere(row)
                    if row.protocol in GENERATED
                    else measure_named(row.protocol)(row)
                )
                if not row.skipped
                else 0.0
            )
            if held != 1:
                failing.add((row.case, row.test))
    return failing


def effective(
    rows: Sequence[Row], *, protocol: Protocol, measure: str | None = None
) -> tuple[list[Row], int]:
    """Return the rows of cases whose new answer the unedited model did not give already.

    Returns:
        Those rows, and the number of cases left out.
    """
    own = [row for row in rows if row.role == "reliability" and row.stage == Stage.AFTER]
    before = success(
        as_before(own), "reliability", protocol=protocol, measure=measure, stage=Stage.BEFORE
    )
    known = {case for case, value in before.by_case.items() if value == 1}
    return [row for row in rows if row.case not in known], len(known)


def _decide_one_group(
    row: Row, decide: Callable[[str, str], bool], words: Callable[[str], object] = has_characters
) -> float | str:
    text = required_answer(row)
    _require_target(row, row.expected)
    if not all(any(map(words, group)) for group in row.expected):
        return NO_WORDS
    if len(row.expected) > 1:
        return SEVERAL_ANSWERS
    return float(any(decide(text, one) for one in row.expected[0]))


def _decide_all_groups(
    row: Row, decide: Callable[[str, str], bool], words: Callable[[str], object] = has_characters
) -> float | str:
    text = required_answer(row)
    _require_target(row, row.expected)
    if not all(any(map(words, group)) for group in row.expected):
        return NO_WORDS
    return float(all(any(decide(text, one) for one in group) for group in row.expected))


def _require_target(row: Row, wanted: Sequence[object]) -> None:
    if not wanted:
        raise MalformedRows(
            "the expected answer is empty.",
            where=row.label,
            hint="Leave such items out of the benchmark, or say in `skipped` why it has none.",
        )


_TITLES = {
    "reliability": "the new answer, where it was edited",
    "generalization": "the new answer, asked in other words",
    "portability": "consequences of the edit",
}

METRICS: tuple[Metric, ...] = tuple(
    define(
        metric_name(role, protocol, measure),
        title,
        success,
        role,
        reads=role,
        legacy=measure is not None and measure.endswith("_legacy"),
        options={"protocol": protocol, "measure": measure},
    )
    for role, title in _TITLES.items()
    for protocol, measure in list_measures(MEASURES)
)
