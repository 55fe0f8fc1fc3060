"""RippleEdits and MQuAKE: the worked examples, and matches the released program gets wrong."""

from __future__ import annotations

import pytest

from corrigenda.errors import NotResampled
from corrigenda.metrics.estimate import Bootstrap
from corrigenda.metrics.ripple import (
    edit_wise,
    instance_wise,
    known_to_the_unedited_model,
    multi_hop,
    multi_hop_given_instance,
    ripple_accuracy,
    unobservable,
)
from corrigenda.metrics.success import CONDITION_FAILS
from corrigenda.rows import Row, Stage
from tests.support.rows import said

ROLE = {"role": "portability/logical_generalization"}


def test_one_test_passes() -> None:
    rows = [said("1", "Rome", "Rome"), said("1", "Italy", "Italy", probe=1, test="t", **ROLE)]
    assert ripple_accuracy(rows, "logical_generalization").value == 1


def with_condition(case: str, number: int, right: bool, *, executed: bool = True) -> list[Row]:
    asked = {"probe": number, "test": f"t{number}"}
    return [
        said(case, "Rome" if right else "Oslo", "Rome", **asked, **ROLE),
        said(
            case,
            "yes" if executed else "no",
            "yes",
            **{**asked, "probe": 100 + number},
            role="condition",
            stage=Stage.BEFORE,
        ),
    ]


ENTRIES = [
    said("1", "new", "new"),
    *with_condition("1", 1, True),
    *with_condition("1", 2, False),
    *with_condition("1", 3, True, executed=False),
    said("2", "new", "new"),
    *with_condition("2", 1, True),
    said("3", "old", "new"),
    *with_condition("3", 1, True),
    *with_condition("3", 2, False),
    said("4", "new", "new"),
    *with_condition("4", 1, True, executed=False),
]


def test_only_executed_tests_of_successful_edits_count() -> None:
    found = ripple_accuracy(ENTRIES, "logical_generalization")
    assert (found.value, found.n) == (0.75, 2)
    assert found.skipped[CONDITION_FAILS] == 2


def test_failed_edits_count_in_the_unconditional_number() -> None:
    found = ripple_accuracy(ENTRIES, "logical_generalization", only_successful=False)
    assert found.value == pytest.approx(0.6667, abs=5e-5)
    assert "unconditional" in found.metric


@pytest.mark.parametrize(
    ("text", "prompt", "spelling", "ours", "legacy"),
    [
        ("USSR", "", "US", 0, 1),
        ("US", "", "US", 1, 1),
        ("rome", "", "Rome", 1, 0),
        ("Oslo", "Rome is in", "Rome", 0, 1),
    ],
)
def test_matching(text: str, prompt: str, spelling: str, ours: int, legacy: int) -> None:
    rows = [said("1", "new", "new"), said("1", text, spelling, probe=1, prompt=prompt, **ROLE)]
    assert ripple_accuracy(rows, "logical_generalization").value == ours
    assert ripple_accuracy(rows, "logical_generalization", legacy=True).value == legacy


def chained(case: str, role: str, values: list[int], first: int, **more) -> list[Row]:
    return [
        said(case, "new" if right else "old", "new", role=role, probe=first + i, **more)
        for i, right in enumerate(values)
    ]


RECORDS = [
    *chained("1", "reliability", [1, 1], 0),
    *chained("1", "portability/chain", [1, 1, 1], 10),
    *chained("1", "portability/multi_hop", [0, 1, 0], 20, rivals=["old"]),
    *chained("2", "reliability", [1, 0], 0),
    *chained("2", "portability/chain", [1, 0], 10),
    *chained("2", "portability/multi_hop", [0, 0, 0], 20, rivals=["old"]),
]


def test_two_cases_of_mquake() -> None:
    assert edit_wise(RECORDS).value == 0.75
    assert instance_wise(RECORDS).value == 0.5
    assert multi_hop(RECORDS).value == 0.5
    assert multi_hop(RECORDS, pooling="all").value == 0
    assert multi_hop(RECORDS, pooling="mean").value == pytest.approx(1 / 6)
    assert multi_hop(RECORDS, stale=True, pooling="mean").value == pytest.approx(5 / 6)
    assert multi_hop_given_instance(RECORDS).value == 1


def test_a_best_of_several_questions_cannot_be_resampled() -> None:
    own = Bootstrap(hierarchical=True)
    for metric in (multi_hop, instance_wise, edit_wise, multi_hop_given_instance):
        with pytest.raises(NotResampled):
            metric(RECORDS, bootstrap=own)
    single = [one for one in RECORDS if one.probe in (0, 10, 20)]
    for metric in (multi_hop, instance_wise, edit_wise):
        found, plain = metric(single, bootstrap=own), metric(single)
        assert (found.low, found.high) == (plain.low, plain.high)


def test_edits_weigh_the_same_over_all_cases() -> None:
    rows = [*chained("1", "reliability", [1, 1, 1], 0), *chained("2", "reliability", [0], 0)]
    assert edit_wise(rows).value == 0.75


def test_cases_whose_edit_cannot_be_seen() -> None:
    role = {"role": "portability/multi_hop"}
    rows = [said("1", "x", "Rome", rivals=["rome."], **role), said("2", "x", "a b", **role)]
    assert unobservable(rows) == {"1"}


def test_what_the_unedited_model_knows() -> None:
    rows = [
        said("1", "x", "Rome", answer_before="Rome", role="portability/chain"),
        said("1", "x", "Oslo", answer_before="Rome", role="portability/chain", probe=1),
        said("2", "x", "Oslo", answer_before="Oslo", role="portability/chain"),
    ]
    assert known_to_the_unedited_model(rows, "portability/chain") == {"2"}
