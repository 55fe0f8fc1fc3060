"""Laws of the tracing engine, on small random models."""

from __future__ import annotations

import pytest
import torch

from corrigenda.analysis.causal_trace import causal_trace, tokenise_prompt
from corrigenda.analysis.state_restoration import (
    Restoration,
    compute_probabilities,
    draw_noise,
    measure_subject_deviation,
)
from corrigenda.analysis.trace_effects import Kind
from corrigenda.errors import BadConfig, SubjectNotFound
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, Tokens, state, write
from corrigenda.testing.tiny import tiny_model

FAMILIES = ("gpt2", "llama", "gptj", "gemma2")
PROMPT, SUBJECT = "The tower of the Space Needle is in", "the Space Needle"
SAMPLES = 3
CLOSE = {"rtol": 1e-4, "atol": 1e-7}


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny_model(request.param)


def probabilities(lm: LanguageModel, *restorations: Restoration, deviation: float = 0.0, **how):
    question, _ = tokenise_prompt(lm, PROMPT, SUBJECT)
    deviation = deviation or 3 * measure_subject_deviation(lm, [(PROMPT, SUBJECT)])
    noise = draw_noise(lm, len(question.subject), deviation=deviation, samples=SAMPLES, seed=0)
    return question, compute_probabilities(lm, question, noise, restorations, **how)


def test_noise_reaches_the_answer(lm: LanguageModel) -> None:
    _, read = probabilities(lm)
    assert read.restored.shape == (0, SAMPLES)
    assert (read.corrupted / read.clean - 1).abs().min() > 1e-3
    assert len(set(read.corrupted.tolist())) == SAMPLES


def test_clean_row_is_the_plain_forward_pass(lm: LanguageModel) -> None:
    question, read = probabilities(lm, Restoration((1,), (state(0),)))
    ids = torch.tensor([question.ids])
    logits = lm.logits(Tokens(ids, torch.ones_like(ids)))[0, question.prompt_last]
    torch.testing.assert_close(read.clean, logits.softmax(-1)[question.labels[0]], **CLOSE)


def test_restoring_everything_gives_the_clean_probability(lm: LanguageModel) -> None:
    question, _ = tokenise_prompt(lm, PROMPT, SUBJECT)
    everywhere = tuple(range(len(question.ids)))
    plan = [
        Restoration((question.prompt_last,), (state(lm.num_layers - 1),)),
        Restoration(tuple(question.subject), (state(-1),)),
        *(Restoration(everywhere, (state(layer),)) for layer in range(lm.num_layers)),
    ]
    _, read = probabilities(lm, *plan)
    torch.testing.assert_close(read.restored, read.clean.expand_as(read.restored), **CLOSE)


def test_states_before_the_subject_change_nothing(lm: LanguageModel) -> None:
    question, _ = tokenise_prompt(lm, PROMPT, SUBJECT)
    before = tuple(range(question.subject.start))
    assert before
    plan = [Restoration(before, (Kind(kind).point(1),)) for kind in Kind]
    _, read = probabilities(lm, *plan)
    torch.testing.assert_close(read.restored, read.corrupted.expand_as(read.restored), **CLOSE)


def test_embeddings_are_noised_before_positions_are_added() -> None:
    lm = tiny_model("gpt2")
    question, _ = tokenise_prompt(lm, PROMPT, SUBJECT)
    noise = draw_noise(lm, len(question.subject), deviation=1.0, samples=1, seed=0)
    seen = {}

    def keep(values: torch.Tensor) -> torch.Tensor:
        seen["stream"] = values.clone()
        return values

    with lm.swap({state(-1): keep}):
        compute_probabilities(lm, question, noise, [])
    stream = seen["stream"]
    inside = slice(question.subject.start, question.subject.stop)
    torch.testing.assert_close(stream[1, inside] - stream[0, inside], noise[0], rtol=0, atol=1e-5)
    outside = [at for at in range(stream.shape[1]) if at not in question.subject]
    assert outside
    assert torch.equal(stream[0, outside], stream[1, outside])


def test_scaled_embeddings_are_noised_where_sigma_is_measured() -> None:
    lm = tiny_model("gemma2")
    question, _ = tokenise_prompt(lm, PROMPT, SUBJECT)
    ids = torch.tensor([question.ids[question.subject.start : question.subject.stop]])
    embedded = lm.model.get_input_embeddings()(ids)
    deviation = measure_subject_deviation(lm, [(PROMPT, SUBJECT)])
    assert deviation == pytest.approx(float(embedded.std(correction=0)), rel=1e-5)
    noise = draw_noise(lm, len(question.subject), deviation=deviation, samples=1, seed=0)
    seen = {}

    def keep(values: torch.Tensor) -> torch.Tensor:
        seen["stream"] = values.clone()
        return values

    with lm.swap({state(-1): keep}):
        compute_probabilities(lm, question, noise, [])
    stream = seen["stream"][:, question.subject.start : question.subject.stop]
    ratio = (stream[1] - stream[0]) / noise[0]
    scale = stream[0].norm() / embedded.norm()
    torch.testing.assert_close(ratio, scale.expand_as(ratio), rtol=1e-3, atol=1e-3)


def test_batching_changes_nothing(lm: LanguageModel) -> None:
    plan = [
        Restoration((token,), (state(layer),)) for token in (2, 3) for layer in range(lm.num_layers)
    ]
    _, together = probabilities(lm, *plan)
    _, apart = probabilities(lm, *plan, batch_tokens=1)
    torch.testing.assert_close(together.restored, apart.restored, **CLOSE)


def test_severed_increments_are_those_of_the_corrupted_run(lm: LanguageModel) -> None:
    """After block 0 is restored, the token keeps that state plus corrupted increments."""
    question, _ = tokenise_prompt(lm, PROMPT, SUBJECT)
    last = question.subject[-1]
    outputs = tuple(
        write(Site(layer, part))
        for layer in range(lm.num_layers)
        for part in ("mlp.down", "attn.out")
    )
    seen: dict[int, torch.Tensor] = {}

    def keeper(layer: int):
        def keep(values: torch.Tensor) -> torch.Tensor:
            seen[layer] = values[:, last].clone()
            return values

        return keep

    later = range(1, lm.num_layers)
    noise = draw_noise(lm, len(question.subject), deviation=1.0, samples=SAMPLES, seed=0)
    plan = [Restoration((last,), (state(0),), outputs)]
    with lm.swap({state(layer): keeper(layer) for layer in later}):
        compute_probabilities(lm, question, noise, plan)
    ids = torch.tensor([question.ids])
    clean = lm.tap(Tokens(ids, torch.ones_like(ids)), [state(0)])[state(0)][0, last]
    baseline = {}

    def keep_first(values: torch.Tensor) -> torch.Tensor:
        baseline[0] = values[:, last].clone()
        return values

    with lm.swap({state(0): keep_first}):
        compute_probabilities(lm, question, noise, [])
    for layer in later:
        corrupted, severed = seen[layer][1 : 1 + SAMPLES], seen[layer][1 + SAMPLES :]
        increments = corrupted - baseline[0][1 : 1 + SAMPLES]
        torch.testing.assert_close(severed, clean + increments, rtol=1e-4, atol=1e-4)


def test_restoring_wins_over_severing(lm: LanguageModel) -> None:
    point = write(Site(1))
    both = Restoration((3,), (point,), (point,))
    _, read = probabilities(lm, both, Restoration((3,), (point,)))
    assert torch.equal(read.restored[0], read.restored[1])


def test_windows_over_everything_leave_the_noise_in_the_stream(lm: LanguageModel) -> None:
    question, _ = tokenise_prompt(lm, PROMPT, SUBJECT)
    outputs = tuple(
        write(Site(layer, part))
        for layer in range(lm.num_layers)
        for part in ("mlp.down", "attn.out")
    )
    subject = tuple(range(len(question.ids)))
    _, read = probabilities(lm, Restoration(subject, outputs))
    # The last token's own embedding is clean; only the subject's states stay noised.
    torch.testing.assert_close(read.restored, read.clean.expand_as(read.restored), **CLOSE)
    _, read = probabilities(lm, Restoration(subject[:-1], outputs))
    assert (read.restored - read.clean).abs().max() > 1e-7


def test_hooks_are_gone_after_an_error() -> None:
    lm = tiny_model("llama")
    before = lm.digest()
    question, _ = tokenise_prompt(lm, PROMPT, SUBJECT)
    noise = draw_noise(lm, len(question.subject), deviation=1.0, samples=1, seed=0)
    with pytest.raises(IndexError):
        compute_probabilities(lm, question, noise, [Restoration((10**6,), (state(0),))])
    assert not lm.model.get_input_embeddings()._forward_hooks
    assert lm.digest() == before


def test_bad_settings_are_refused() -> None:
    lm = tiny_model("llama")
    for wrong in ({"kinds": ()}, {"severed": (Kind.STATE,)}, {"window": 0}, {"samples": 0}):
        with pytest.raises(BadConfig):
            causal_trace(lm, PROMPT, SUBJECT, **wrong)
    with pytest.raises(BadConfig, match="noise of nan"):
        causal_trace(lm, PROMPT, SUBJECT, noise=float("nan"))
    with pytest.raises(SubjectNotFound):
        causal_trace(lm, PROMPT, "Space needle")
