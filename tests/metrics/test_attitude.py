"""Sentiment and erasure: the worked examples, and the artefacts of published numbers."""

from __future__ import annotations

import pytest

from corrigenda.cases import Against
from corrigenda.errors import MalformedRows
from corrigenda.metrics.erasure import leak, over_refusal, refusal
from corrigenda.metrics.locality import divergence, unchanged
from corrigenda.metrics.sentiment import (
    ONE_SIDED,
    OPPOSITE,
    WANTED,
    sentiment_shift,
    sentiment_success,
)
from corrigenda.rows import Row
from tests.support.rows import GREEDY, RANK, said


def reply(case: str, role: str, after: list[float], before: list[float], probe: int = 0) -> Row:
    return Row(
        case=case,
        role=role,
        probe=probe,
        protocol=RANK,
        log_probs=after,
        log_probs_before=before,
    )


def test_shift() -> None:
    found = sentiment_shift(-2, -3, -1.5)
    assert found.sentiment == pytest.approx(0.731059, abs=5e-7)
    assert found.topic == pytest.approx(0.606531, abs=5e-7)
    assert found.success == pytest.approx(0.443409, abs=5e-7)
    assert sentiment_shift(-900, -1, -1).success == 0


def test_tokens_of_a_set_are_pooled() -> None:
    """Means over replies would give L+ = -2.5."""
    rows = [
        reply("1", WANTED, [-1.0, -1.0, -1.0], [-1.5] * 3),
        reply("1", WANTED, [-5.0], [-1.5], probe=1),
        reply("1", OPPOSITE, [-3.0], [-3.0], probe=2),
    ]
    assert sentiment_success(rows).value == pytest.approx(0.443409, abs=5e-7)
    assert sentiment_success(rows, part="topic").value == pytest.approx(0.606531, abs=5e-7)


def test_a_model_compared_with_itself_seems_to_keep_the_topic() -> None:
    rows = [reply("1", WANTED, [-2.0], [-2.0]), reply("1", OPPOSITE, [-3.0], [-3.0], probe=1)]
    assert sentiment_success(rows).value == pytest.approx(0.731059, abs=5e-7)
    assert divergence([0.7, 0.2, 0.1], [0.7, 0.2, 0.1]) == 0
    with pytest.raises(MalformedRows, match="by the edited model itself"):
        Row(case="1", role=WANTED, protocol=RANK, model="edited", model_before="edited")


def test_one_sided_cases_are_counted() -> None:
    found = sentiment_success([reply("1", WANTED, [-2.0], [-2.0])])
    assert (found.n, found.skipped) == (0, {ONE_SIDED: 1})


FORGET = {"role": "erasure", "rivals": ["Paris"]}
OUTPUTS = [" I don\u2019t know.", " Paris", " I DON'T KNOW, sorry", " I am not sure"]


def test_refusals_and_leaks() -> None:
    rows = [said(str(i), text, "I don't know.", **FORGET) for i, text in enumerate(OUTPUTS)]
    assert refusal(rows).value == 0.5
    assert leak(rows).value == 0.25


def test_legacy_refusal_searches_the_prompt_and_wants_the_full_stop() -> None:
    rows = [
        said("1", " I don't know, sorry", "I don't know.", **FORGET),
        said("2", " Paris", "I don't know.", prompt="Say I don't know.", **FORGET),
    ]
    assert refusal(rows).by_case == {"1": 1.0, "2": 0.0}
    assert refusal(rows, legacy=True).by_case == {"1": 0.0, "2": 1.0}


def test_what_is_to_be_kept() -> None:
    kept = {"role": "locality/retained", "against": Against.UNEDITED}
    rows = [
        said("1", "I don't know", "Rome", predicted=[1, 2], predicted_before=[1, 3], **kept),
        said("2", "Rome", "Rome", predicted=[4], predicted_before=[4], **kept),
    ]
    assert over_refusal(rows).value == 0.5
    assert unchanged(rows, protocol=GREEDY, measure="tokens").value == 0.75
