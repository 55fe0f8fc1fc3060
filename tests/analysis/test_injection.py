"""Injection by layer, against a plain forward pass."""

from __future__ import annotations

import pytest
import torch

from corrigenda.analysis.injection import (
    SETTINGS,
    Injection,
    find_best_layer,
    measure_injection,
)
from corrigenda.errors import AmbiguousSubject
from corrigenda.facts import Fact
from corrigenda.lm.decoding import answer, score
from corrigenda.testing.tiny import tiny_model

FACTS = [
    Fact(
        prompt="The Space Needle is in",
        subject="Space Needle",
        target="Rome",
        paraphrases=("Where is the Space Needle? In", "It stands in"),
    ),
    Fact(prompt="Anna speaks", subject="Anna", target="French and German"),
]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_measures_every_layer(family: str) -> None:
    lm = tiny_model(family)
    before = lm.digest()
    results = measure_injection(lm, FACTS, prefixes=("It rains. ",))
    assert [result.layer for result in results] == list(range(lm.num_layers))
    for result in results:
        assert len(result.answered) == 2
        # Only paraphrases that hold the subject can carry a vector.
        assert [len(fact) for fact in result.transferred] == [1, 0]
    assert lm.digest() == before


def test_a_vector_that_cannot_move_changes_nothing() -> None:
    lm = tiny_model("llama")
    (said,) = answer(lm, ["Anna speaks"], max_new_tokens=2)
    still = SETTINGS._replace(steps=1)
    others = measure_injection(lm, FACTS, layers=[1], settings=still)[0]
    known = [all(one.correct) for one in score(lm, [(f.prompt, f.target) for f in FACTS])]
    assert list(others.answered) == known == [False, False]
    if said:
        own = Fact(prompt="Anna speaks", subject="Anna", target=said)
        says = all(score(lm, [(own.prompt, own.target)])[0].correct)
        result = measure_injection(lm, [own], layers=[1], settings=still)[0]
        assert result.answered == (says,)


def test_a_vector_at_the_last_position_of_the_last_block_can_say_anything() -> None:
    """Where the subject ends the prompt, the vector stands right before the head."""
    lm = tiny_model("llama")
    fact = Fact(prompt="He met Anna", subject="Anna", target="a")
    (encoded,) = score(lm, [(fact.prompt, fact.target)])
    assert len(encoded.ids) == 1
    strong = SETTINGS._replace(steps=60, clamp=1e4, weight_decay=0.0)
    result = measure_injection(lm, [fact], layers=[lm.num_layers - 1], settings=strong)[0]
    assert result.answered == (True,)


def test_subjects_are_needed() -> None:
    with pytest.raises(AmbiguousSubject):
        measure_injection(tiny_model("llama"), [Fact(prompt="Anna speaks", target="French")])


def test_facts_do_not_depend_on_their_company() -> None:
    lm = tiny_model("gpt2", dtype=torch.float64)
    together = measure_injection(lm, FACTS, layers=[0, 1])
    alone = [measure_injection(lm, [fact], layers=[0, 1]) for fact in FACTS]
    for number, result in enumerate(together):
        assert result.answered == tuple(each[number].answered[0] for each in alone)


def test_shares_and_best_layer() -> None:
    low = Injection(0, (True, False), ((True,), (True, True)))
    high = Injection(1, (True, True), ((False,), (True, False)))
    better = Injection(2, (True, True), ((True,), (True, False)))
    assert low.share == 0.5
    assert low.transfer == 1.0
    assert find_best_layer([low, better, high]) is better
    assert Injection(0, (True,), ((),)).transfer is None
