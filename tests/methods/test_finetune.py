"""The engine of fine-tuning: it equals training the whole model, and touches nothing."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from corrigenda.errors import NonFinite, UnknownSite
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, Tokens, state
from corrigenda.methods.finetune import training
from corrigenda.methods.finetune.editor import Ft
from corrigenda.methods.finetune.training import FactTokens, FineTuned, FineTuning, fine_tune
from tests.support.locating import FACTS, exact_dtype, model

LAYER = 1
PLAIN = FineTuning("teacher-forced", epochs=4, learning_rate=1e-3, batch_size=2)
OBJECTIVES = ("teacher-forced", "last-token")


def examples(lm: LanguageModel, facts: Sequence[Fact] = FACTS) -> list[FactTokens]:
    return Ft(layer=LAYER).examples(lm, facts)


def train(lm: LanguageModel, settings: FineTuning = PLAIN, layer: int = LAYER, **more) -> FineTuned:
    chosen = more.get("chosen", examples(lm))
    return fine_tune(lm, Site(layer), chosen, settings, [str(i) for i in range(len(chosen))])


def whole_loss(lm: LanguageModel, example: FactTokens, objective: str) -> Tensor:
    """The objective of one fact, alone, through the whole model."""
    labels = torch.tensor(example.labels)
    if objective == "last-token":
        prompt = example.ids[: example.prompt_last + 1]
        logits = lm.logits(Tokens.pad([prompt], 0))[0, -1:].expand(len(labels), -1)
    else:
        logits = lm.logits(Tokens.pad([example.ids], 0))[0, example.prompt_last :]
    return cross_entropy(logits, labels)


def whole_training(
    lm: LanguageModel, settings: FineTuning, layer: int
) -> tuple[Tensor, list[float]]:
    """Ordinary training of the parameter itself in a copy of the model: change, losses in order."""
    lm = LanguageModel(copy.deepcopy(lm.model), lm.tokenizer)
    weight = lm.module(Site(layer)).weight
    origin = weight.detach().clone()
    weight.requires_grad_(True)
    optimiser = torch.optim.Adam(
        [weight], lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    chosen, trace = examples(lm), []
    for _ in range(settings.epochs):
        for begin in range(0, len(chosen), settings.batch_size):
            part = chosen[begin : begin + settings.batch_size]
            losses = [whole_loss(lm, one, settings.objective) for one in part]
            trace += [float(loss.detach()) for loss in losses]
            optimiser.zero_grad()
            torch.stack(losses).mean().backward()
            optimiser.step()
            if settings.box is not None:
                low, high = origin - settings.box, origin + settings.box
                weight.data.copy_(weight.data.clamp(low, high))
    change = (weight.detach() - origin).clone()
    return (change if change.shape == lm.weight(Site(layer)).shape else change.T), trace


@pytest.mark.parametrize("layer", [LAYER, 3])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "gemma2", "mistral", "olmo2"])
def test_it_equals_training_the_whole_model(family: str, objective: str, layer: int) -> None:
    lm = model(family, exact_dtype(family))
    settings = PLAIN._replace(objective=objective)
    found = train(lm, settings, layer)
    change, trace = whole_training(lm, settings, layer)
    # The attention of Gemma 2 is in float32, where Adam turns noise in a tiny gradient into a step.
    tolerance = 1e-3 if family in ("gemma2", "gptj") else 1e-7
    assert (found.delta - change).norm() <= tolerance * change.norm()
    mine = [found.losses[i][epoch] for epoch in range(settings.epochs) for i in range(len(FACTS))]
    assert mine == pytest.approx(trace, rel=tolerance)
    assert found.steps == 8
    assert found.stop == "epochs"


@pytest.mark.parametrize("constraint", [{"box": 2e-3}, {"weight_decay": 0.3}])
def test_constraints_equal_those_of_the_whole_model(constraint: dict[str, float]) -> None:
    lm = model("gpt2", torch.float64)
    settings = PLAIN._replace(**constraint)
    change, _ = whole_training(lm, settings, LAYER)
    assert (train(lm, settings).delta - change).norm() <= 1e-7 * change.norm()
    assert (train(lm, PLAIN).delta - change).norm() > 1e-2 * change.norm()


def test_the_bias_is_one_more_input() -> None:
    lm = model("gpt2", torch.float64)
    found = train(lm, PLAIN._replace(epochs=1, batch_size=len(FACTS), bias=True))
    twin = LanguageModel(copy.deepcopy(lm.model), lm.tokenizer)
    bias = twin.module(Site(LAYER)).bias
    bias.requires_grad_(True)
    losses = [whole_loss(twin, one, "teacher-forced") for one in examples(twin)]
    torch.stack(losses).mean().backward()
    assert bias.grad is not None
    assert found.bias is not None
    torch.testing.assert_close(found.bias, -1e-3 * bias.grad.sign(), rtol=1e-3, atol=1e-9)
    assert found.delta.shape == lm.weight(Site(LAYER)).shape
    assert train(lm).bias is None


def test_the_gradient_does_not_know_the_tokens_of_the_prompt_as_labels() -> None:
    """The hand-made gradient of the masked objective: softmax minus one-hot at the labels only."""
    lm = model("llama", torch.float64)
    (example,) = examples(lm, FACTS[1:2])
    delta = torch.zeros_like(lm.weight(Site(LAYER)), requires_grad=True)
    inputs = training._ConstantsCache(lm, Site(LAYER), [example])
    training._accumulate(lm, inputs, [0], delta, PLAIN)

    twin = LanguageModel(copy.deepcopy(lm.model), lm.tokenizer)
    weight = twin.module(Site(LAYER)).weight
    weight.requires_grad_(True)
    logits = twin.logits(Tokens.pad([example.ids], 0))[0]
    slope = torch.zeros_like(logits)
    for place, label in enumerate(example.labels):
        at = example.prompt_last + place
        slope[at] = logits[at].detach().softmax(dim=-1) / len(example.labels)
        slope[at, label] -= 1 / len(example.labels)
    logits.backward(slope)
    assert delta.grad is not None
    torch.testing.assert_close(delta.grad, weight.grad)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_batch_gives_the_losses_of_its_facts_alone(objective: str) -> None:
    lm = model("gpt2")
    together = train(lm, PLAIN._replace(objective=objective, batch_size=len(FACTS)))
    for index, one in enumerate(examples(lm)):
        alone = train(lm, PLAIN._replace(objective=objective, epochs=1), chosen=[one])
        assert alone.losses[0][0] == pytest.approx(together.losses[index][0], rel=1e-5)


def test_without_room_for_constants_and_in_small_pieces_the_result_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm, settings = model("llama", torch.float64), PLAIN._replace(batch_size=3)
    expected = train(lm, settings)
    monkeypatch.setattr(training, "_STEP_TOKENS", {"cpu": 1})
    pieces = train(lm, settings)
    monkeypatch.setattr(training, "memory_budget", lambda _: 0)
    rebuilt = train(lm, settings)
    for other in (pieces, rebuilt):
        assert (other.delta - expected.delta).norm() <= 1e-8 * expected.delta.norm()
        assert other.final == pytest.approx(expected.final)


@pytest.mark.parametrize("pieces", [1, 1000])
def test_a_mini_batch_that_is_learnt_takes_no_step(
    pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = model("llama")
    monkeypatch.setattr(training, "_STEP_TOKENS", {"cpu": pieces})
    first = [losses[0] for losses in train(lm, PLAIN._replace(epochs=1)).losses]
    means = [sum(first[:2]) / 2, sum(first[2:]) / 2]
    between = sum(means) / 2
    one = train(lm, PLAIN._replace(epochs=1, stop_loss=between, learning_rate=1e-9))
    assert one.steps == 1
    none = train(lm, PLAIN._replace(stop_loss=100.0))
    assert none.steps == 0
    assert none.stop == "loss"
    assert len(none.averages) == 1
    assert not none.delta.any()


def test_training_ends_with_the_epoch_whose_average_is_small_enough() -> None:
    # The logits of a random model are bounded, so its losses are too.
    lm, enough = model("llama"), 2.0
    found = train(lm, PLAIN._replace(learning_rate=5e-2, epochs=60, batch_size=4, stop_loss=enough))
    assert found.stop == "loss"
    assert found.averages[-1] < enough <= min(found.averages[:-1])
    assert len(found.averages) < 60
    assert all(len(losses) == len(found.averages) for losses in found.losses)


def test_status_says_why_a_fact_is_not_written() -> None:
    lm = model("llama")
    boxed = train(lm, PLAIN._replace(box=1e-5))
    assert 0 < boxed.at_box <= 1
    assert set(boxed.statuses) == {"clamped"}
    assert set(train(lm).statuses) == {"not converged"}
    assert all(loss > math.log(2.0) for loss in boxed.final)


def test_final_losses_are_those_of_the_patched_model() -> None:
    lm = model("gpt2")
    settings = PLAIN._replace(objective="last-token", epochs=6)
    found = train(lm, settings)
    twin = LanguageModel(copy.deepcopy(lm.model), lm.tokenizer)
    twin.write(Site(LAYER), lm.weight(Site(LAYER)) + found.delta)
    expected = [float(whole_loss(twin, one, "teacher-forced")) for one in examples(lm)]
    assert found.final == pytest.approx(expected, rel=1e-4)


def test_half_precision_trains_a_change_in_single_precision() -> None:
    lm = model("llama", torch.bfloat16)
    found = train(lm, PLAIN._replace(epochs=8, learning_rate=5e-3))
    assert found.delta.dtype == torch.float32
    assert found.averages[-1] < 0.8 * found.averages[0]


@pytest.mark.parametrize("layer", [LAYER, 3])
def test_nothing_of_the_model_changes_also_when_it_raises(layer: int) -> None:
    lm = model("llama")
    digest, side = lm.digest(), lm.tokenizer.padding_side
    train(lm, layer=layer)
    with (
        lm.swap({state(layer): lambda x: x * torch.nan}),
        pytest.raises(NonFinite, match=r"CG201.*epoch 1"),
    ):
        train(lm, layer=layer)
    assert lm.digest() == digest
    assert lm.tokenizer.padding_side == side
    assert not any(one.requires_grad for one in lm.model.parameters())
    assert all(one.grad is None for one in lm.model.parameters())


def test_experts_have_no_one_down_projection() -> None:
    with pytest.raises(UnknownSite, match="CG303"):
        Ft(layer=LAYER).edit(model("qwen3_moe"), FACTS[:1])
