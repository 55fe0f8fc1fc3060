"""ROME: what each variant promises, on random models (algebra) of both weight layouts."""

from __future__ import annotations

import pytest
import torch

from corrigenda.engines.locate import pipeline
from corrigenda.engines.locate.contexts import Contexts
from corrigenda.errors import DependentKeys, MissingState, NonFinite, NotEnoughFacts, UnknownSite
from corrigenda.lm.sites import Site, key, value
from corrigenda.methods.rome.editor import Rome
from corrigenda.patch import WeightPatch
from tests.support.locating import FACTS, PLAIN, exact_dtype, model, moments

LAYER = 1
VARIANTS = ("r-rome", "rome", "p-rome", "denominator")


def rome(**options: object) -> Rome:
    settings = {"layer": LAYER, "contexts": PLAIN, "steps": 5, "learning_rate": 0.2}
    return Rome(**{**settings, **options})


def edited(editor: Rome, family: str = "gpt2", dtype: torch.dtype = torch.float64) -> WeightPatch:
    lm = model(family, dtype)
    return editor.edit(lm, FACTS[:1], moments(lm, [LAYER])).patch


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_constraint_of_each_variant_holds(variant: str, family: str) -> None:
    lm, editor = model(family, exact_dtype(family)), rome(variant=variant)
    state = moments(lm, [LAYER])
    patch = editor.edit(lm, FACTS[:1], state).patch
    constraint = editor.constraints(lm, FACTS[:1], state)[Site(LAYER)]
    with patch.apply(lm):
        reached = lm.weight(Site(LAYER)).double() @ constraint.keys
    tolerance = 1e-9 if lm.dtype == torch.float64 else 1e-4
    torch.testing.assert_close(reached, constraint.values, rtol=tolerance, atol=tolerance)
    values = patch.changes[Site(LAYER)].singular_values()
    assert values[0] > 0
    assert (values[1:] <= 1e-9 * values[0]).all()


@pytest.mark.parametrize("variant", ["rome", "p-rome"])
def test_the_clean_prompt_gets_the_wanted_output(variant: str) -> None:
    lm, editor = model("gpt2", torch.float64), rome(variant=variant)
    state = moments(lm, [LAYER])
    patch = editor.edit(lm, FACTS[:1], state).patch
    clean, point = pipeline.subject_tokens(lm, FACTS[:1], Contexts()), value(Site(LAYER))
    before = pipeline.capture_last(lm, clean, [point])[point]
    with patch.apply(lm):
        after = pipeline.capture_last(lm, clean, [point])[point]
    written = editor.constraints(lm, FACTS[:1], state)[Site(LAYER)]
    wanted = written.values[:, 0] + lm.bias(Site(LAYER)).double()
    torch.testing.assert_close(after[0].double(), wanted, rtol=1e-5, atol=1e-6)
    assert (after - before).norm() > 0.1


def test_the_change_is_the_smallest_in_the_metric_of_old_keys() -> None:
    lm, editor = model("llama", torch.float64), rome()
    state = moments(lm, [LAYER])
    change = editor.edit(lm, FACTS[:1], state).patch.changes[Site(LAYER)].to_dense()
    at = editor.constraints(lm, FACTS[:1], state)[Site(LAYER)].keys[:, 0]
    metric = state.factor(Site(LAYER)).matrix()
    generator = torch.Generator().manual_seed(0)
    other = torch.randn(change.shape, generator=generator, dtype=torch.float64)
    other -= (other @ at)[:, None] * at / (at @ at)
    other *= change.norm() / other.norm() / 10
    cost = torch.trace(change @ metric @ change.T)
    assert torch.trace((change + other) @ metric @ (change + other).T) > cost
    gradient = torch.trace(change @ metric @ other.T)
    assert gradient.abs() <= 1e-9 * cost


def test_both_layouts_store_the_same_change() -> None:
    for family in ("gpt2", "llama"):
        lm = model(family, torch.float64)
        patch = edited(rome(), family)
        before = lm.weight(Site(LAYER)).clone()
        with patch.apply(lm):
            difference = lm.weight(Site(LAYER)) - before
        torch.testing.assert_close(difference, patch.changes[Site(LAYER)].to_dense())


def test_without_a_step_original_rome_changes_nothing_and_r_rome_a_little() -> None:
    assert edited(rome(variant="rome", steps=1)).norms()[Site(LAYER)] == 0.0
    assert edited(rome(variant="r-rome", steps=1)).norms()[Site(LAYER)] > 0.0


def test_without_the_moment_the_metric_is_the_plain_one() -> None:
    lm, editor = model("llama", torch.float64), rome(use_moment=False, variant="p-rome")
    change = editor.edit(lm, FACTS[:1]).patch.changes[Site(LAYER)]
    clean = pipeline.subject_tokens(lm, FACTS[:1], Contexts())
    at = pipeline.capture_last(lm, clean, [key(Site(LAYER))])[key(Site(LAYER))][0].double()
    right = change.right[:, 0]
    assert torch.nn.functional.cosine_similarity(right, at, dim=0) == pytest.approx(1.0, abs=1e-9)
    assert not editor.requires.moments
    assert rome().requires.moments


def test_the_header_tells_what_happened() -> None:
    patch = edited(rome())
    notes = patch.header.notes
    assert patch.header.method == "rome"
    assert patch.header.config["variant"] == "r-rome"
    assert patch.header.facts[0]["target"] == FACTS[0].target
    assert len(notes["search"][0]["losses"]) == 5
    assert notes["status"][0] in {"written", "not converged", "clamped"}
    assert notes["layers"] == [LAYER]
    assert len(notes["key_agreement"][str(Site(LAYER))]) == 1


def test_a_subject_at_the_very_start_is_warned_of() -> None:
    lm = model("gpt2")
    notes = rome().edit(lm, FACTS[3:], moments(lm, [LAYER])).patch.header.notes
    length = len(lm.tokenizer("Windows").input_ids)
    assert any("very first token" in notice for notice in notes["notices"]) == (length == 1)


def test_the_model_stays_as_it_is_also_when_the_edit_fails() -> None:
    lm = model("llama")
    state, digest = moments(lm, [LAYER]), lm.digest()
    rome().edit(lm, FACTS[:1], state)
    assert lm.digest() == digest
    lm.write(Site(3), torch.full_like(lm.weight(Site(3)), torch.nan))
    digest = lm.digest()
    with pytest.raises(NonFinite):
        rome().edit(lm, FACTS[:1], state)
    assert lm.digest() == digest


def test_equal_arguments_give_equal_patches_and_no_facts_the_empty_one() -> None:
    assert edited(rome(), dtype=torch.float32) == edited(rome(), dtype=torch.float32)
    lm = model()
    assert rome().edit(lm, [], moments(lm, [LAYER])).patch.is_empty


def test_misuse_is_refused() -> None:
    lm = model()
    with pytest.raises(NotEnoughFacts, match="CG106"):
        rome().edit(lm, FACTS[:2], moments(lm, [LAYER]))
    with pytest.raises(MissingState, match="CG503"):
        rome().edit(lm, FACTS[:1])
    with pytest.raises(MissingState, match="CG503"):
        rome().edit(lm, FACTS[:1], moments(lm, [0]))
    with pytest.raises(UnknownSite, match="CG303"):
        rome(layer=40).sites(lm)


def test_a_zero_key_is_refused() -> None:
    lm = model("llama")
    lm.write(Site(LAYER, "mlp.up"), torch.zeros_like(lm.weight(Site(LAYER, "mlp.up"))))
    with pytest.raises(DependentKeys, match="CG202"):
        rome().edit(lm, FACTS[:1], moments(lm, [LAYER]))


def test_a_probed_layer_is_kept_in_the_state_and_named_in_the_notices() -> None:
    lm = model("llama")
    editor = rome(layer=None, use_moment=False)
    state = editor.fit(lm)
    (site,) = editor.sites(lm)
    patch = editor.edit(lm, FACTS[:1], state).patch
    assert patch.sites == (site,)
    assert any(f"block {site.layer}" in notice for notice in patch.header.notes["notices"])


def test_an_edit_that_would_disable_the_model_is_refused_and_says_so() -> None:
    made = edited(rome())
    refused = edited(rome(largest_change=1e-9))
    assert not made.is_empty
    assert refused.is_empty
    assert refused.header.notes["status"] == ["refused"]
    (why,) = refused.header.notes["notices"]
    assert "disabling edit refused" in why
    assert edited(rome(largest_change=1e9)).changes == made.changes
