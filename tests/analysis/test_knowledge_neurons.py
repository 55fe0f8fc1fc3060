"""Knowledge neurons as an analysis: what scaling them does, and what a record holds."""

from __future__ import annotations

import json

import pytest
import torch

from corrigenda.analysis.knowledge_neurons import knowledge_neurons, scaled_probability
from corrigenda.engines.attribution import Neuron, attribute, encode_answers
from corrigenda.errors import BadConfig, SubjectNotFound
from corrigenda.facts import Span
from corrigenda.lm.decoding import score
from corrigenda.testing.tiny import tiny_model

FAMILIES = ("gpt2", "llama", "gptj", "gemma2")
PROMPT, ANSWER = "The Space Needle is in", "Seattle"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("subject", [None, "Space Needle"])
def test_silencing_a_block_gives_the_lower_end_of_the_path(
    family: str, subject: str | None
) -> None:
    lm = tiny_model(family, dtype=torch.float64)
    spans = None if subject is None else [Span(4, 16)]
    asked = encode_answers(lm, [PROMPT], ANSWER, subjects=spans)
    found = attribute(lm, asked, steps=2)
    for layer in range(lm.num_layers):
        every = [Neuron(layer, unit) for unit in range(lm.d_inner)]
        silent = scaled_probability(lm, asked[0], every, 0.0)
        assert silent == pytest.approx(float(found.without[0, layer]), rel=1e-6)
        assert scaled_probability(lm, asked[0], every, 1.0) == pytest.approx(
            float(found.clean[0]), rel=1e-6
        )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_is_found(family: str) -> None:
    lm = tiny_model(family, dtype=torch.float64)
    before = lm.digest()
    result = knowledge_neurons(
        lm, PROMPT, answer=ANSWER, paraphrases=["The town of the Space Needle is"], steps=10
    )
    assert lm.digest() == before
    assert result.scores.shape == (2, lm.num_layers, lm.d_inner)
    assert result.neurons
    assert set(result.strongest(3)) <= set(result.neurons)
    assert result.strongest(1) == [max(result.neurons, key=result.score)]
    (scored,) = score(lm, [(PROMPT, ANSWER)])
    mean = sum(torch.tensor(scored.log_probs).exp().tolist()) / len(scored.log_probs)
    assert result.effect.clean == pytest.approx(mean, rel=1e-4)
    assert result.effect.suppressed < result.effect.clean < result.effect.amplified
    assert sum(result.by_layer()) == pytest.approx(float(result.scores.sum()) / 2)
    record = json.loads(json.dumps(result.to_json()))
    assert len(record["neurons"]) == len(result.neurons)
    assert record["answer"] == ANSWER


def test_prompts_are_the_prompt_alone_or_behind_prefixes() -> None:
    lm = tiny_model("llama")
    alone = knowledge_neurons(lm, PROMPT, paraphrases=[], steps=2)
    assert alone.prompts == (PROMPT,)
    assert len(alone.neurons) == alone.coarse[0]
    behind = knowledge_neurons(lm, PROMPT, subject="Space Needle", steps=2)
    assert len(behind.prompts) == 6
    assert all(text.endswith(PROMPT) for text in behind.prompts)


def test_other_positions_are_left_alone() -> None:
    """Silencing at the last position of the prompt cannot reach tokens before it."""
    lm = tiny_model("gpt2", dtype=torch.float64)
    asked = encode_answers(lm, [PROMPT], ANSWER)
    late = asked[0][-1]._replace(at=len(asked[0][-1].ids) - 1)
    last = [Neuron(lm.num_layers - 1, unit) for unit in range(lm.d_inner)]
    early = late._replace(at=0)
    clean = scaled_probability(lm, [late], [], 1.0)
    assert scaled_probability(lm, [late], last, 0.0) != pytest.approx(clean, rel=1e-6)
    assert scaled_probability(lm, [early], last, 0.0) == pytest.approx(clean, rel=1e-12)


def test_misuse_is_refused() -> None:
    lm = tiny_model("llama")
    with pytest.raises(BadConfig, match="CG502"):
        knowledge_neurons(lm, PROMPT, threshold=-1.0)
    with pytest.raises(SubjectNotFound, match="CG103"):
        knowledge_neurons(lm, PROMPT, subject="Space needle")
    with pytest.raises(SubjectNotFound, match="CG103"):
        knowledge_neurons(lm, PROMPT, subject="Space Needle", paraphrases=["It is in"])
