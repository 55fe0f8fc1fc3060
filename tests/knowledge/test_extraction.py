"""Erasure: a refusal is said, or the answer is gone, and extraction finds what is left."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from corrigenda.engines.locate.rows import rewrite_rows
from corrigenda.engines.locate.target_search import SearchSettings, find_targets
from corrigenda.errors import EmptyTarget, MalformedFacts
from corrigenda.facts import REFUSAL, Fact, as_facts
from corrigenda.knowledge.extraction import ExtractionFigures, try_extraction
from corrigenda.lm.decoding import answer
from corrigenda.methods.presets import build_editor
from tests.support.locating import TWO_LEVEL, model, pocket, pocket_moments

GONE = Fact(
    prompt="What is the capital of France?",
    subject="France",
    before="Paris",
    erase=True,
    paraphrases=("The capital of France is", "France has its seat of government in"),
    neighbours=("What is the capital of Spain?",),
)


def test_a_fact_to_forget_has_a_refusal_as_its_target() -> None:
    assert GONE.target == REFUSAL
    asked = {"prompt": "Rome is in", "before": "Italy"}
    assert Fact(**asked, target=None, erase=True) == Fact(**asked, erase=True)
    assert Fact(**asked, target="No idea.", erase=True).target == "No idea."
    (read,) = as_facts({**asked, "erase": True})
    assert (read.target, read.erase) == (REFUSAL, True)
    for missing in ({}, {"target": ""}, {"target": " ", "erase": True}):
        with pytest.raises(EmptyTarget, match="CG102"):
            Fact(**asked, **missing)
    with pytest.raises(MalformedFacts, match="erase"):
        Fact(**asked, erase="yes")


def test_suppression_is_the_gradient_of_minus_log_of_what_is_not_said() -> None:
    """One step down its own loss, which is that of the rows with a negative weight."""
    lm = model("llama", torch.float64)
    fact = Fact(prompt="The Space Needle is in", subject="Space Needle", before="Rome", erase=True)
    rows = rewrite_rows(lm, [fact], TWO_LEVEL, suppress=True)
    labels = tuple(lm.tokenizer(" Rome", add_special_tokens=False).input_ids)
    assert all(row.labels == labels and row.weight < 0 for row in rows if row.labels)
    settings = SearchSettings(
        steps=12, learning_rate=0.05, kl_weight=0.0, weight_decay=0.0, clamp=4.0, stop_loss=0.0
    )
    found = find_targets(lm, rows, layer=1, role="state", settings=settings, names=["x"])
    losses = [one.nll for one in found.traces[0].losses]
    assert losses[0] > 0
    assert all(later < earlier for earlier, later in pairwise(losses))
    with pytest.raises(EmptyTarget, match="answer to forget"):
        rewrite_rows(
            lm, [Fact(prompt="Rome is in", subject="Rome", erase=True)], TWO_LEVEL, suppress=True
        )


@pytest.mark.parametrize("erasure", ["refuse", "suppress"])
def test_the_shipped_model_forgets_an_answer(erasure: str) -> None:
    """A refusal holds for its own prompt; what is suppressed is gone in other words too."""
    lm = pocket()
    known = try_extraction(lm, [GONE], samples=4)
    assert known == ExtractionFigures(1.0, 1.0, 1.0, 1.0)
    before = answer(lm, GONE.neighbours)
    editor = build_editor("memit", "pocket", contexts=TWO_LEVEL, erasure=erasure)
    with editor.edit(lm, [GONE], pocket_moments((1, 2, 3))).patch.apply(lm):
        left = try_extraction(lm, [GONE], samples=4)
        said = answer(lm, [GONE.prompt])[0]
        assert answer(lm, GONE.neighbours) == before
    assert left.prompt == 0.0
    assert said.startswith("I don't know") == (erasure == "refuse")
    if erasure == "suppress":
        assert left == ExtractionFigures(0.0, 0.0, 0.0, 0.0)


def test_nothing_to_forget_has_no_figures() -> None:
    assert try_extraction(pocket(), [Fact(prompt="Rome is in", erase=True)]) == ExtractionFigures(
        None, None, None, None
    )
