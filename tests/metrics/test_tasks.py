"""Scores on other tasks from recorded likelihoods, against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from corrigenda.errors import MalformedRows
from corrigenda.metrics.metric import RunRecords
from corrigenda.metrics.registry import evaluate, metric
from corrigenda.metrics.tasks.choices import choice_change, choice_retention, choice_score
from corrigenda.metrics.tasks.measured import mean_task_retention
from corrigenda.rows import Measurement, Row, Stage
from tests.support.rows import RANK


def item(
    number: int, answer: int, after: int, before: int = 0, *, task: str = "t", classes: int = 2
) -> Row:
    """An item whose choices are these places, by a clear margin."""

    def rated(choice: int) -> tuple[list[float], list[list[float]]]:
        each = [[-1.0] if place == choice else [-2.0] for place in range(classes)]
        return each[answer], each[:answer] + each[answer + 1 :]

    own, rivals = rated(after)
    own_before, rivals_before = rated(before)
    return Row(
        case=str(number),
        role=f"task/{task}",
        protocol=RANK,
        expected=[[str(answer)]],
        token_ids=[1],
        log_probs=own,
        log_probs_before=own_before,
        rival_log_probs=rivals,
        rival_log_probs_before=rivals_before,
        tags=[f"answer={answer}"],
    )


def test_accuracy_f1_and_correlation() -> None:
    """Answers 0 0 0 1, choices 0 0 1 1: F1 of the classes 4/5 and 2/3, MCC 1/sqrt 3."""
    rows = [item(i, *pair) for i, pair in enumerate(zip([0, 0, 0, 1], [0, 0, 1, 1], strict=True))]
    assert choice_score(rows).value == 0.75
    assert choice_score(rows, measure="f1").value == pytest.approx((3 * 0.8 + 2 / 3) / 4)
    assert choice_score(rows, measure="correlation").value == pytest.approx(1 / math.sqrt(3))
    assert choice_score(rows, "t").by_case == {"t/0": 1, "t/1": 1, "t/2": 0, "t/3": 1}


def test_three_classes() -> None:
    """Answers 0 1 2 2, choices 0 2 2 1: c=2, s=4, t=(1,1,2), p=(1,1,2) -> (8-6)/(16-6)."""
    pairs = zip([0, 1, 2, 2], [0, 2, 2, 1], strict=True)
    rows = [item(i, *pair, classes=3) for i, pair in enumerate(pairs)]
    assert choice_score(rows, measure="correlation").value == pytest.approx(0.2)


def test_one_choice_for_all_has_no_correlation() -> None:
    rows = [item(i, answer, 0) for i, answer in enumerate([0, 0, 1, 1])]
    assert choice_score(rows, measure="correlation").value == 0
    assert choice_score(rows, measure="f1").value == pytest.approx(1 / 3)


def test_change_and_retention_are_paired_and_averaged_over_tasks() -> None:
    """Task a falls from 4/4 to 1/4, task b stays at 1/2, task c was never done."""
    rows = [item(i, 1, int(i == 0), 1, task="a") for i in range(4)]
    rows += [item(i, 1, i, i, task="b") for i in range(2)]
    assert choice_retention(rows, "a").value == 0.25
    assert choice_change(rows, "a").value == -0.75
    assert choice_retention(rows).value == pytest.approx((0.25 + 1) / 2)
    rows += [item(0, 1, 1, 0, task="c")]
    assert math.isnan(choice_retention(rows, "c").value)
    assert choice_retention(rows).value == pytest.approx((0.25 + 1) / 2)


def test_a_tie_is_wrong_and_length_counts_as_asked() -> None:
    """The right choice has two tokens: likelier per token, not as a whole."""
    row = item(0, 0, 0)
    tied = Row(**{**vars(row), "log_probs": [-2.0], "rival_log_probs": [[-2.0]]})
    assert choice_score([tied]).value == 0
    long = Row(
        **{
            **vars(row),
            "token_ids": [1, 2],
            "log_probs": [-0.9, -0.9],
            "log_probs_before": [-0.9, -0.9],
            "rival_log_probs": [[-1.0]],
        }
    )
    assert choice_score([long]).value == 1
    assert choice_score([long], normalization="sum").value == 0


def test_the_right_place_must_be_known() -> None:
    row = Row(**{**vars(item(0, 0, 0)), "tags": []})
    with pytest.raises(MalformedRows, match="place of the right choice"):
        choice_score([row])


PUBLISHED = {
    "reasoning": (0.751, 0.309),
    "sentiment": (0.638, 0.011),
    "summarization": (0.1027, 0.0256),
    "open_questions": (0.0324, 0.0026),
}


def measured(task: str, stage: Stage, score: float) -> Measurement:
    return Measurement(case="all", name=f"task/{task}", values=[score], stage=stage)


def test_published_mean_retention() -> None:
    """ROME after 10 edits, from the survey: .4115, .0172, .2493, .0802, on average .1896."""
    records = [
        measured(task, stage, score)
        for task, scores in PUBLISHED.items()
        for stage, score in zip((Stage.BEFORE, Stage.AFTER), scores, strict=True)
    ]
    assert mean_task_retention(records).value == pytest.approx(0.1896, abs=5e-5)
    found = {one.metric: one.value for one in evaluate(RunRecords([], records))}
    assert found["task_retention/reasoning"] == pytest.approx(0.4115, abs=5e-5)
    assert found["task/sentiment"] == 0.011
    assert found["task_change/reasoning"] == pytest.approx(-0.442)
    assert found["task_retention"] == pytest.approx(0.1896, abs=5e-5)
    never = [measured("x", Stage.BEFORE, 0.0), measured("x", Stage.AFTER, 0.5)]
    again = mean_task_retention([*records, *never])
    assert again.value == pytest.approx(0.1896, abs=5e-5)
    assert again.skipped == {"task never done before": 1}


def test_tasks_have_metrics_by_name() -> None:
    assert metric("task_accuracy/rte@rank").reads == "task/rte"
    assert metric("task/wikitext.word_perplexity").arrow == "v"
    assert metric("task/piqa.acc").arrow == "^"
