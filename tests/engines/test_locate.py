"""The target search against a plain loop, capture at the subject, and the choice of layers."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Literal, cast

import pytest
import torch
from torch import Tensor

from corrigenda.engines.locate import pipeline
from corrigenda.engines.locate.contexts import Contexts
from corrigenda.engines.locate.layer_choice import choose_layer
from corrigenda.engines.locate.target_search import SearchRow, SearchSettings, Targets, find_targets
from corrigenda.errors import AmbiguousSubject, NonFinite, PromptTooLong
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Point, Site, Tokens, key, state, value, write
from corrigenda.progress import show_progress
from tests.support.locating import FACTS, PLAIN, model

SETTINGS = SearchSettings(
    steps=6, learning_rate=0.2, kl_weight=0.5, weight_decay=0.01, clamp=4.0, stop_loss=0.0
)
LAYER = 1


def plain_search(
    lm: LanguageModel, rows: list[SearchRow], point: Point, settings: SearchSettings
) -> tuple[Tensor, list[list[float]]]:
    """One fact, full forward passes with the vector swapped in, losses by autograd."""
    tokens = Tokens.pad([list(row.ids) for row in rows], 0)
    starts = torch.tensor([row.start for row in rows])
    every = torch.arange(len(rows))
    anchor = lm.tap(tokens, [point], positions=starts)[point][0].clone()
    delta = torch.zeros_like(anchor, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=settings.learning_rate)
    before: Tensor | None = None
    losses = []

    def add(values: Tensor) -> Tensor:
        values = values.clone()
        values[every, starts] = values[every, starts] + delta
        return values

    for step in range(settings.steps):
        with lm.swap({point: add}):
            logits = lm.model(input_ids=tokens.ids, attention_mask=tokens.mask).logits
        log_p = logits.log_softmax(dim=-1)
        nll = torch.zeros((), dtype=log_p.dtype)
        for i, row in enumerate(rows[:-1]):
            for read, label in zip(row.reads, row.labels, strict=True):
                nll = nll - log_p[i, read, label] / len(row.labels) / (len(rows) - 1)
        now = log_p[-1, rows[-1].start]
        before = now.detach() if before is None else before
        kl = settings.kl_weight * (now.exp() * (now - before)).sum()
        decay = settings.weight_decay * delta.norm() / anchor.norm() ** 2
        loss = nll + kl + decay
        losses.append([float(part.detach()) for part in (loss, nll, kl, decay)])
        if step == settings.steps - 1:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            limit = settings.clamp * anchor.norm()
            if delta.norm() > limit:
                delta *= limit / delta.norm()
    return delta.detach(), losses


def search(
    lm: LanguageModel,
    facts: tuple[Fact, ...] = FACTS,
    role: str = "state",
    settings: SearchSettings = SETTINGS,
) -> Targets:
    rows = pipeline.rewrite_rows(lm, facts, PLAIN)
    names = [fact.label for fact in facts]
    return find_targets(lm, rows, layer=LAYER, role=role, settings=settings, names=names)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "gemma2"])
@pytest.mark.parametrize("role", ["state", "value"])
def test_the_batched_search_equals_the_plain_one(family: str, role: str) -> None:
    # Gemma 2 computes its attention in float32, where the masks of float64 overflow.
    dtype, tolerance = (torch.float32, 2e-3) if family == "gemma2" else (torch.float64, 1e-5)
    lm = model(family, dtype)
    found = search(lm, role=role)
    point = state(LAYER) if role == "state" else value(Site(LAYER))
    for index, fact in enumerate(FACTS):
        rows = pipeline.rewrite_rows(lm, [fact], PLAIN)
        delta, losses = plain_search(lm, rows, point, SETTINGS)
        assert (found.deltas[index] - delta).norm() <= tolerance * delta.norm()
        torch.testing.assert_close(
            torch.tensor(found.traces[index].losses), torch.tensor(losses), rtol=1e-4, atol=1e-6
        )


def test_other_facts_and_their_order_do_not_matter() -> None:
    lm = model("llama")
    together = search(lm)
    backwards = search(lm, FACTS[::-1])
    assert torch.equal(together.deltas, backwards.deltas.flip(0))
    for index, fact in enumerate(FACTS):
        alone = search(lm, (fact,)).deltas[0]
        assert (together.deltas[index] - alone).norm() <= 1e-4 * alone.norm()


def test_steps_are_reported_with_the_loss() -> None:
    class Seen:
        def __init__(self) -> None:
            self.calls: list[tuple[str, int, int]] = []
            self.notes: list[str] = []

        def __call__(self, *call: object) -> None:
            self.calls.append(call)  # type: ignore[arg-type]  # three, as declared

        def note(self, stage: str, text: str) -> None:
            self.notes.append(f"{stage}, {text}")

        def close(self) -> None:
            pass

    seen = Seen()
    with show_progress(seen):
        found = search(model())
    assert seen.calls[0] == ("search", 0, SETTINGS.steps)
    assert [done for _, done, _ in seen.calls[1:]] == [1, 2, 3, 4, 5, 6, 6]
    means = [
        sum(trace.losses[step].nll for trace in found.traces) / len(FACTS)
        for step in range(SETTINGS.steps)
    ]
    assert seen.notes == [f"search, nll {mean:.2f}" for mean in means]


def test_the_last_pass_takes_no_step() -> None:
    found = search(model(), settings=SETTINGS._replace(steps=1))
    assert not found.deltas.any()
    assert [len(trace.losses) for trace in found.traces] == [1] * len(FACTS)


@pytest.mark.parametrize("loss", ["nll", "total"])
def test_a_fact_below_the_stopping_loss_moves_no_more_while_others_go_on(
    loss: Literal["nll", "total"],
) -> None:
    # With a large decay the two losses stop at different steps.
    settings = SETTINGS._replace(weight_decay=2.0)
    lm = model(dtype=torch.float64)
    free = search(lm, settings=settings)
    curves = [[getattr(entry, loss) for entry in trace.losses] for trace in free.traces]
    stop = sorted(curve[2] for curve in curves)[1]
    stopped = search(lm, settings=settings._replace(stop_loss=stop, stop_on=loss))
    lengths = [len(trace.losses) for trace in stopped.traces]
    expected = [
        next((i + 1 for i, loss in enumerate(curve) if loss < stop), len(curve)) for curve in curves
    ]
    assert lengths == expected
    assert len(set(lengths)) > 1
    for index, trace in enumerate(stopped.traces):
        assert trace.stop == ("loss" if lengths[index] < SETTINGS.steps else trace.stop)
        shorter = search(lm, settings=settings._replace(steps=lengths[index]))
        torch.testing.assert_close(stopped.deltas[index], shorter.deltas[index])


def test_delta_stays_in_its_ball_and_the_trace_says_so() -> None:
    found = search(model(), settings=SETTINGS._replace(clamp=0.01))
    assert (found.deltas.norm(dim=1) <= 0.01 * found.anchors.norm(dim=1) * (1 + 1e-6)).all()
    assert all(trace.at_clamp and trace.clamped_steps for trace in found.traces)
    assert {trace.status for trace in found.traces} == {"clamped"}


def test_anchors_are_read_at_the_clean_prompt() -> None:
    lm = model("llama")
    found = search(lm, role="value")
    clean = pipeline.subject_tokens(lm, FACTS, Contexts())
    point = value(Site(LAYER))
    torch.testing.assert_close(found.anchors, pipeline.capture_last(lm, clean, [point])[point])


def test_a_broken_model_is_named_with_the_fact() -> None:
    lm = model()
    weight = lm.weight(Site(3))
    lm.write(Site(3), torch.full_like(weight, math.nan))
    with pytest.raises(NonFinite, match=r"CG201(.|\n)*Space Needle"):
        search(lm)


def test_half_precision_keeps_vectors_and_losses_in_float32() -> None:
    found = search(model("llama", torch.bfloat16))
    assert found.deltas.dtype == found.anchors.dtype == torch.float32
    assert found.deltas.norm(dim=1).min() > 0


def test_rows_stop_at_the_subject_for_the_essence_and_before_the_last_label() -> None:
    lm = model("llama")
    rows = pipeline.rewrite_rows(lm, FACTS[:1], PLAIN)
    assert [row.anchor for row in rows] == [True, False, False, False]
    assert not rows[-1].labels
    assert rows[-1].tail == 1
    for row, prefix in zip(rows, PLAIN.prefixes, strict=False):
        text = lm.tokenizer.decode(row.ids[: row.start + 1], skip_special_tokens=True)
        assert text.strip() == f"{prefix}The Space Needle"
        assert len(row.reads) == len(row.labels)
        assert row.reads[-1] == len(row.ids) - 1


def test_capture_runs_equal_strings_once_and_keeps_the_order() -> None:
    lm = model("llama")
    sequences = [(1, 5, 9), (1, 7), (1, 5, 9), (1, 5, 9, 4, 4)]
    points = [key(Site(0)), state(2)]
    found = pipeline.capture_last(lm, sequences, points)
    for index, ids in enumerate(sequences):
        alone = lm.tap(Tokens.pad([list(ids)], 0), points)
        for point in points:
            torch.testing.assert_close(found[point][index], alone[point][0, -1])


def test_a_residual_is_carried_back_through_the_norm_behind_the_block() -> None:
    lm = model("gemma2")
    site, clean = Site(2), pipeline.subject_tokens(lm, FACTS[:2], Contexts())
    captured = pipeline.capture_last(lm, clean, [value(site), write(site)])
    generator = torch.Generator().manual_seed(0)
    gain = captured[write(site)].double() / captured[value(site)].double()
    wanted = torch.randn(gain.shape, generator=generator, dtype=torch.float64)
    back = pipeline.residuals_at_output(lm, site, clean, wanted)
    torch.testing.assert_close(back * gain, wanted, rtol=2e-2, atol=2e-2)
    plain = model("llama", torch.float64)
    clean = pipeline.subject_tokens(plain, FACTS[:2], Contexts())
    assert torch.equal(pipeline.residuals_at_output(plain, site, clean, wanted), wanted)


def test_facts_without_subject_or_beyond_the_context_are_refused() -> None:
    lm = model()
    with pytest.raises(AmbiguousSubject, match="CG104"):
        pipeline.rewrite_rows(
            lm, [Fact(prompt="The Space Needle is in", target="Rome")], Contexts()
        )
    long = Fact(prompt="Rome " + "and so on " * 200 + "is", subject="Rome", target="Paris")
    with pytest.raises(PromptTooLong, match="CG105"):
        pipeline.rewrite_rows(lm, [long], Contexts())


@pytest.mark.parametrize(
    ("blocks", "layer"), [(1, 0), (2, 0), (4, 1), (12, 2), (18, 3), (28, 5), (30, 5), (48, 8)]
)
def test_without_preset_a_block_is_chosen_by_depth_and_told(blocks: int, layer: int) -> None:
    lm = SimpleNamespace(num_layers=blocks, name="mine")
    choice = choose_layer(cast("LanguageModel", lm))
    assert choice.layer == layer
    assert f"block {layer} of {blocks}" in choice.message
