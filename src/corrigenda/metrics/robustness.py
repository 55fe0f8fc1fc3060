"""Robustness: whether the edit holds in other surroundings, or when it is contradicted.

Rows of family `robustness`, greedy: the new answer is expected, the old one is the rival. The kind
is what surrounds the question: a cloze, long related context, a dialogue, a doubt, the old answer
asserted. Only the continuation is searched; prompts that assert the old answer hold it themselves,
so that reversion there is close to agreement with the user: never average the kinds of doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from corrigenda.cases import SURROUNDINGS, Protocol
from corrigenda.metrics.estimate import BOOTSTRAP, AnswerValue, Bootstrap, Estimate, over_cases
from corrigenda.metrics.metric import HIGHER, LOWER, Metric, define
from corrigenda.metrics.selection import required_answer, select
from corrigenda.metrics.strings import contains, normalise
from corrigenda.metrics.success import metric_name
from corrigenda.rows import Row

FIRST_ANSWER_OLD = "the first answer of the dialogue was not the new one"
_DENIALS = {"not", "never", "no", "cannot", "isnt", "wasnt", "arent", "didnt", "doesnt", "dont"}
_REACH = 3


class OutputState(StrEnum):
    """State of an output by the answers that appear in it; every output is in exactly one."""

    KEPT = "kept"
    """The new answer alone."""

    REVERTED = "reverted"
    """The old answer, without the new one."""

    MIXED = "mixed"
    """Both."""

    CONFUSED = "confused"
    """Neither, or the new answer denied without the old one."""


def has_new_answer(row: Row) -> bool:
    """Whether a spelling of every expected group appears in the continuation."""
    text = required_answer(row)
    return bool(row.expected) and all(
        any(contains(text, one) for one in group) for group in row.expected
    )


def has_old_answer(row: Row) -> bool:
    """Whether a rival appears in the continuation."""
    return any(contains(required_answer(row), one) for one in row.rivals)


def state(row: Row) -> OutputState:
    """Return the state of an output, by the new and the old answer.

    A new answer is denied where a negation is among the three words before it.

    Example:
        >>> state(Row(case="1", role="robustness", protocol=Protocol.GREEDY, expected=[["Rome"]],
        ...           rivals=["Paris"], answer="It is not Rome."))
        <OutputState.CONFUSED: 'confused'>
    """
    new, old = has_new_answer(row), has_old_answer(row)
    if new and old:
        return OutputState.MIXED
    if old:
        return OutputState.REVERTED
    if not new or _is_denied(row):
        return OutputState.CONFUSED
    return OutputState.KEPT


def attack_accuracy(
    rows: Sequence[Row], role: str = "robustness", *, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """Share of outputs in which the new answer appears."""
    return _share_of_outputs(rows, role, "accuracy", [], bootstrap)


def reversion(
    rows: Sequence[Row], role: str = "robustness", *, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """Share of outputs in which the old answer appears; not exclusive with accuracy."""
    return _share_of_outputs(rows, role, "reversion", [], bootstrap)


def share_in_state(
    rows: Sequence[Row],
    which: OutputState,
    role: str = "robustness",
    *,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Share of outputs in one state; the four shares sum to 1."""
    return _share_of_outputs(rows, role, which, [which], bootstrap)


def dialogue_state(
    rows: Sequence[Row],
    which: OutputState,
    role: str = "robustness/dialogue",
    *,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Share of dialogues whose last answer is in a state, among those that began with the new one.

    The answers of a dialogue share `test`; their order is that of the probes.
    """
    found, skipped = select(rows, role, protocol=Protocol.GREEDY)
    dialogues: dict[tuple[str, str, str], list[Row]] = {}
    for row in found:
        dialogues.setdefault((row.case, row.role, row.test), []).append(row)
    items: list[AnswerValue] = []
    for (case, kind, _), own in dialogues.items():
        ordered = sorted(own, key=lambda row: row.probe)
        if not has_new_answer(ordered[0]):
            skipped[FIRST_ANSWER_OLD] += 1
            continue
        items.append(AnswerValue(case, float(state(ordered[-1]) == which), kind))
    name = metric_name(f"dialogue_{which}", Protocol.GREEDY)
    return over_cases(name, items, skipped=skipped, bootstrap=bootstrap)


def _share_of_outputs(
    rows: Sequence[Row], role: str, name: str, states: Sequence[OutputState], bootstrap: Bootstrap
) -> Estimate:
    found, skipped = select(rows, role, protocol=Protocol.GREEDY)
    items: list[AnswerValue] = []
    for row in found:
        if states:
            value = state(row) in states
        else:
            value = has_new_answer(row) if name == "accuracy" else has_old_answer(row)
        items.append(AnswerValue(row.case, float(value), row.kind))
    label = metric_name(f"{role}_{name}", Protocol.GREEDY)
    return over_cases(label, items, skipped=skipped, bootstrap=bootstrap)


def _is_denied(row: Row) -> bool:
    found = normalise(required_answer(row)).split()
    for group in row.expected:
        for spelling in group:
            wanted = normalise(spelling).split()
            for at in range(len(found) - len(wanted) + 1):
                if wanted and found[at : at + len(wanted)] == wanted:
                    near = found[max(0, at - _REACH) : at]
                    if any(word in _DENIALS for word in near):
                        return True
    return False


def _define_rates(role: str, where: str) -> tuple[Metric, Metric]:
    return (
        define(
            f"{role}_accuracy@greedy",
            f"the new answer in {where} surroundings",
            attack_accuracy,
            role,
            reads=role,
        ),
        define(
            f"{role}_reversion@greedy",
            f"the old answer in {where} surroundings",
            reversion,
            role,
            reads=role,
            better=LOWER,
        ),
    )


def _define_states(which: OutputState) -> tuple[Metric, Metric]:
    better = HIGHER if which == OutputState.KEPT else LOWER
    return (
        define(
            f"robustness_{which}@greedy",
            "outputs in this state",
            share_in_state,
            which,
            reads="robustness",
            better=better,
        ),
        define(
            f"dialogue_{which}@greedy",
            "dialogues that end in this state",
            dialogue_state,
            which,
            reads="robustness/dialogue",
            better=better,
        ),
    )


METRICS: tuple[Metric, ...] = (
    *_define_rates("robustness", "other"),
    *(one for kind in SURROUNDINGS for one in _define_rates(f"robustness/{kind}", "these")),
    *(one for which in OutputState for one in _define_states(which)),
)
