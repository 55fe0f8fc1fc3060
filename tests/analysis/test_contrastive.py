"""Contrastive assessment of what a model holds true."""

from __future__ import annotations

import math

import pytest
import torch

from corrigenda.analysis.contrastive import Contrast, compute_false_rate, score_contrasts
from corrigenda.errors import BadConfig
from corrigenda.lm.decoding import score
from corrigenda.testing.tiny import tiny_model

CONTRASTS = [
    Contrast("The capital of France is", "Paris", ("The capital of France is not", "France left")),
    Contrast("The Space Needle is in", "Seattle", ("The Space Needle is far from",)),
]


def test_a_uniform_predictor_scores_one() -> None:
    lm = tiny_model("gpt2", layers=1)
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.zero_()
    assert score_contrasts(lm, CONTRASTS) == pytest.approx([1.0, 1.0], rel=1e-5)


@pytest.mark.parametrize("first_token", [True, False])
def test_score_is_the_ratio_of_probabilities(first_token: bool) -> None:
    lm = tiny_model("llama", layers=2)
    (found, _) = score_contrasts(lm, CONTRASTS, first_token=first_token, smoothing=1e-3)
    prompts = (CONTRASTS[0].prompt, *CONTRASTS[0].negatives)
    rated = score(lm, [(prompt, "Paris") for prompt in prompts])
    logs = [one.log_probs[0] if first_token else one.total for one in rated]
    true, *others = [math.exp(one) + 1e-3 for one in logs]
    assert found == pytest.approx(true / (sum(others) / 2), rel=1e-5)


def test_no_probability_at_all_is_no_division_by_zero() -> None:
    lm = tiny_model("gpt2", layers=1)
    lm.model.get_output_embeddings().weight.mul_(1e4)
    assert all(math.isfinite(one) for one in score_contrasts(lm, CONTRASTS))


def test_share_of_false_facts() -> None:
    assert compute_false_rate([0.5, 1.0, 1.05], threshold=1.1) == 1.0
    assert compute_false_rate([0.5, 1.0, 1.05]) == pytest.approx(1 / 3)


def test_a_fact_needs_something_to_compare_with() -> None:
    with pytest.raises(BadConfig, match="wrong relations"):
        score_contrasts(tiny_model("gpt2", layers=1), [Contrast("A is", "B", ())])
