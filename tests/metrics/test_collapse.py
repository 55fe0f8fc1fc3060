"""Perplexity, other tasks, and sequences: the worked examples."""

from __future__ import annotations

import dataclasses
import math

import pytest

from corrigenda.errors import MalformedRows, NotResampled
from corrigenda.metrics.collapse import (
    ROLLBACK,
    TOO_SHORT,
    collapsed,
    perplexity,
    perplexity_ratio,
    rolled_back,
)
from corrigenda.metrics.estimate import Bootstrap
from corrigenda.metrics.sequences import (
    curve,
    disabling_edit,
    find_checkpoints,
    forgetting,
    half_life,
    immediate,
    immediate_curve,
    mean_drift,
    retention,
    success_matrix,
    weight_drift,
)
from corrigenda.metrics.tasks.measured import (
    names_of_tasks,
    task_change,
    task_retention,
    task_score,
)
from corrigenda.rows import Measurement, Row, Stage
from tests.support.rows import FED, GREEDY, fed, said


def text(case: str, log_probs: list[float], before: list[float] | None = None) -> Row:
    return Row(
        case=case,
        role="perplexity",
        protocol=FED,
        log_probs=log_probs,
        log_probs_before=before,
    )


TEXTS = [text("1", [-1.0, -2.0, -3.0]), text("2", [-0.5, -0.5])]


def test_perplexity_of_two_texts() -> None:
    found = perplexity(TEXTS)
    assert found.by_case == {
        "1": pytest.approx(7.3891, abs=5e-5),
        "2": pytest.approx(1.6487, abs=5e-5),
    }
    assert found.value == pytest.approx(4.5189, abs=5e-5)
    assert perplexity(TEXTS, pooling="corpus").value == pytest.approx(4.0552, abs=5e-5)
    assert perplexity(TEXTS, pooling="median").value == pytest.approx(4.5189, abs=5e-5)
    assert perplexity(TEXTS).metric == "perplexity@teacher_forced"


def test_texts_without_a_token_to_predict_are_counted() -> None:
    found = perplexity([*TEXTS, text("3", [])])
    assert (found.n, found.skipped) == (2, {TOO_SHORT: 1})


def test_overflow_is_collapse_and_the_median_stays() -> None:
    rows = [*TEXTS, text("3", [-5000.0])]
    assert perplexity(rows).value == math.inf
    assert perplexity(rows, pooling="median").value == pytest.approx(7.3891, abs=5e-5)
    assert collapsed(rows)


def test_ratio_to_the_unedited_model() -> None:
    rows = [text("1", [-3.0], [-1.0]), text("2", [-2.0], [-2.0])]
    expected = (math.exp(3) + math.exp(2)) / (math.exp(1) + math.exp(2))
    assert perplexity_ratio(rows).value == pytest.approx(expected)
    assert not collapsed(rows)
    assert collapsed([text("1", [-8.0], [-1.0])])
    assert not collapsed([text("1", [-8.0], [-7.5])])


def test_share_of_edits_taken_back() -> None:
    ratios = {"1": (1.2, 0.0), "2": (40.0, 1.0), "3": (math.inf, 1.0), "4": (1.3, 0.0)}
    records = [
        Measurement(case=case, name=ROLLBACK, values=[*values]) for case, values in ratios.items()
    ]
    found = rolled_back(records)
    assert (found.value, found.n, found.metric) == (0.5, 4, "rolled_back")


def answered(task: str, edits: int, scores: list[float]) -> list[Measurement]:
    return [
        Measurement(
            case=str(i),
            name=f"task/{task}",
            values=[score],
            edits=edits,
            stage=Stage.AFTER if edits else Stage.BEFORE,
        )
        for i, score in enumerate(scores)
    ]


def test_task_before_and_after() -> None:
    records = [*answered("a", 0, [0.75, 0.75]), *answered("a", 10, [0.31, 0.31])]
    assert task_score(records, "a", edits=0).value == 0.75
    assert task_change(records, "a", edits=10).value == pytest.approx(-0.44)
    assert task_retention(records, "a", edits=10).value == pytest.approx(0.4133, abs=5e-5)
    assert names_of_tasks(records) == ["a"]


@pytest.mark.parametrize(
    ("before", "after", "retained"),
    [
        (0.751, 0.309, 0.4115),
        (0.638, 0.011, 0.0172),
        (0.1027, 0.0256, 0.2493),
        (0.0324, 0.0026, 0.0802),
    ],
)
def test_published_retention(before: float, after: float, retained: float) -> None:
    records = [*answered("t", 0, [before]), *answered("t", 10, [after])]
    assert task_retention(records, "t", edits=10).value == pytest.approx(retained, abs=6e-5)


def test_retention_of_nothing_is_undefined() -> None:
    records = [*answered("t", 0, [0.0]), *answered("t", 10, [0.5])]
    assert math.isnan(task_retention(records, "t", edits=10).value)


SEQUENCE = [
    fed(str(i), [right], position=i, edits=t)
    for t, line in enumerate(([1], [1, 1], [0, 1, 1]), start=1)
    for i, right in enumerate(line, start=1)
]


def test_matrix_of_three_edits() -> None:
    matrix = success_matrix(SEQUENCE, protocol=FED)
    assert matrix.moments == matrix.positions == (1, 2, 3)
    assert immediate(matrix).value == 1
    assert retention(matrix).value == pytest.approx(0.6667, abs=5e-5)
    assert forgetting(matrix).value == 0.5
    assert forgetting(matrix).n == 2
    assert {t: found.value for t, found in curve(matrix).items()} == {
        1: 1,
        2: 1,
        3: pytest.approx(2 / 3),
    }
    assert half_life(matrix) is None
    assert immediate(matrix).metric == "immediate_success@teacher_forced"


def test_sequences_of_one_answer_each_are_resampled_hierarchically() -> None:
    own = Bootstrap(hierarchical=True)
    matrix = success_matrix(SEQUENCE, protocol=FED)
    assert matrix.answers == 1
    for summary in (immediate, retention, forgetting):
        found, plain = summary(matrix, bootstrap=own), summary(matrix)
        assert (found.low, found.high) == (plain.low, plain.high)
    twice = [*SEQUENCE, *(dataclasses.replace(row, probe=1) for row in SEQUENCE)]
    with pytest.raises(NotResampled):
        retention(success_matrix(twice, protocol=FED), bootstrap=own)


def test_half_life_and_checkpoints() -> None:
    rows = [said(str(i), "new", "new", position=i, edits=i) for i in (1, 10)]
    rows += [said(str(i), "old", "new", position=i, edits=100) for i in (1, 10)]
    matrix = success_matrix(rows, protocol=GREEDY, measure="contains")
    assert matrix.moments == (1, 10, 100)
    assert matrix.protocol == "greedy:contains"
    assert (immediate(matrix).value, retention(matrix).value, half_life(matrix)) == (1, 0, 100)
    assert curve(matrix)[1].skipped == {"not asked at this moment": 1}


def lasting(cases: int, checkpoints: set[int], *, first: int = 0) -> list[Row]:
    """Every edit holds until the next one; all are asked at checkpoints, else the newest alone."""
    return [
        fed(str(first + i), [i == t], position=i, edits=t)
        for t in range(1, cases + 1)
        for i in range(1, t + 1)
        if i == t or t in checkpoints
    ]


def test_a_curve_is_of_all_edits_so_far_and_of_checkpoints_alone() -> None:
    matrix = success_matrix(lasting(10, {4, 10}), protocol=FED)
    assert matrix.moments == tuple(range(1, 11))
    assert matrix.checkpoints == (1, 4, 10)
    values = {t: found.value for t, found in curve(matrix).items()}
    assert values == {1: 1, 4: pytest.approx(1 / 4), 10: pytest.approx(1 / 10)}
    at_once = immediate_curve(matrix)
    assert {t: (found.value, found.n) for t, found in at_once.items()} == {
        1: (1, 1),
        4: (1, 4),
        10: (1, 10),
    }
    assert half_life(matrix) == 4


def test_checkpoints_of_an_edit_that_failed_are_checkpoints() -> None:
    rows = lasting(4, {4})
    failed = [
        dataclasses.replace(row, predicted=None, token_ids=None, log_probs=None, skipped="CG201")
        if row.position == 2
        else row
        for row in rows
    ]
    matrix = success_matrix(failed, protocol=FED)
    assert matrix.checkpoints == (1, 4)
    assert curve(matrix)[4].skipped == {"not asked at this moment": 1}


def test_checkpoints_of_sequences_of_several_lengths() -> None:
    rows = [*lasting(6, {3, 6}), *lasting(4, {3, 4}, first=10)]
    assert find_checkpoints(rows) == (1, 3, 6)
    cut = [row for row in lasting(10, {4, 10}) if row.edits <= 7]
    assert find_checkpoints(cut) == (1, 4)
    assert find_checkpoints([dataclasses.replace(text("t", [0.0]), edits=5)]) == (5,)


def test_questions_come_after_their_edit() -> None:
    with pytest.raises(MalformedRows, match="edit 3 cannot have been asked after 2 edits"):
        success_matrix([fed("1", [1], position=3, edits=2)], protocol=FED)


@pytest.mark.parametrize(
    ("perplexities", "scores", "edit"),
    [
        ({0: 50, 1: 60, 2: 900, 3: 950}, None, 2),
        ({0: 50, 1: 60}, {0: 0.8, 1: 0.4}, 1),
        ({0: 50, 1: 499, 2: 600}, {0: 0.8, 1: 0.7, 2: 0.6}, None),
    ],
)
def test_disabling_edit(perplexities, scores, edit) -> None:
    assert disabling_edit(perplexities, scores) == edit


def test_drift() -> None:
    found = weight_drift([[1.0, 0.0], [0.0, 1.0]], [[1.1, 0.1], [0.1, 1.1]])
    assert found.per_parameter == pytest.approx(0.05)
    assert found.relative == pytest.approx(0.2 / math.sqrt(2))
    records = [Measurement(case="w", name="drift/4", values=[0.2, 2.0, 4.0])]
    assert mean_drift(records, "4").value == pytest.approx(0.1)
