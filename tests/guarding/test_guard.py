"""The guard on edits of the pocket model: verdicts, causes, and the model left as it was."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

import corrigenda as cg
from corrigenda.errors import BadConfig, EditRefused
from corrigenda.guarding.baseline import Baseline
from corrigenda.guarding.causes import split_patch
from corrigenda.guarding.damage import GuardVerdict
from corrigenda.guarding.guard import measure_norm_growth
from corrigenda.guarding.limits import Measure
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.patch import Patch, WeightPatch
from corrigenda.patch.changes import Dense
from corrigenda.patch.header import Header

SAMPLE = 16
PARTS = ("mlp.down", "mlp.up", "mlp.gate", "attn.out")


@pytest.fixture(scope="module")
def memit(pocket: LanguageModel, facts: list[cg.Fact]) -> Patch:
    return cg.edit(pocket, facts, "memit", progress=False)


def noise(lm: LanguageModel, share: float) -> WeightPatch:
    generator = torch.Generator().manual_seed(0)
    changes = {}
    for layer, part in itertools.product(range(lm.num_layers), PARTS):
        site = cg.Site(layer, part)
        weight = lm.weight(site).detach()
        drawn = torch.randn(weight.shape, generator=generator)
        changes[site] = Dense(drawn * (share * weight.norm() / drawn.norm()))
    return WeightPatch(changes, Header(method="noise"))


def test_an_edit_that_changes_nothing_is_free(pocket: LanguageModel, facts: list[cg.Fact]) -> None:
    found = cg.guard(pocket, WeightPatch({}, Header(method="none")), facts, sample=SAMPLE)
    assert found.verdict is GuardVerdict.FREE
    known = [one for one in found.damages if one.items]
    assert {one.measure for one in known} == {*Measure} - {Measure.NORM, Measure.TASKS}
    assert all(one.value == 0.0 for one in known)
    found.require_accepted()


def test_grace_out_of_scope_is_free_to_the_bit(pocket: LanguageModel, facts: list[cg.Fact]) -> None:
    patch = cg.edit(pocket, facts, "grace", progress=False)
    found = cg.guard(pocket, patch, facts, sample=SAMPLE)
    assert found.verdict is GuardVerdict.FREE
    assert found["first token"].value == found["perplexity"].value == 0.0


@pytest.mark.parametrize(
    ("share", "wanted"), [(0.01, {"free"}), (0.5, {"refused"}), (0.15, {"costly", "refused"})]
)
def test_noise_is_judged_by_its_size(
    pocket: LanguageModel, facts: list[cg.Fact], share: float, wanted: set[str]
) -> None:
    found = cg.guard(pocket, noise(pocket, share), facts, sample=SAMPLE, causes=False)
    assert str(found.verdict) in wanted
    assert str(found).startswith(f"{found.verdict}: ")


def test_a_refusal_names_its_number_and_leaves_the_model(
    pocket: LanguageModel, facts: list[cg.Fact]
) -> None:
    before = pocket.digest()
    found = cg.guard(pocket, noise(pocket, 0.5), facts[:1], sample=SAMPLE)
    assert pocket.digest() == before
    assert not pocket.patches
    assert found.decided_by is not None
    with pytest.raises(EditRefused, match=f"CG408 .*{found.decided_by.measure}.*refused above"):
        found.require_accepted()


def test_columns_of_a_closed_form_edit_are_its_facts(
    pocket: LanguageModel, facts: list[cg.Fact], memit: Patch
) -> None:
    """Without its column a fact is no longer true, and the others still are."""
    parts = split_patch(memit, len(facts))
    assert len(parts) == len(facts)
    total = parts[0]
    for one in parts[1:]:
        total += one
    for site, change in memit.changes.items():
        assert isinstance(change, LowRank)
        assert torch.equal(total.changes[site].to_dense(), change.to_dense())
    out = 2
    rest = [one for place, one in enumerate(parts) if place != out]
    entries = [one.apply(pocket, force=True) for one in rest]
    held = [cg.answer(pocket, fact.prompt).startswith(fact.target) for fact in facts]
    for one in reversed(entries):
        one.revert()
    assert held[out] is False
    assert sum(held) >= len(facts) - 2


def test_patches_of_other_methods_are_not_taken_apart(facts: list[cg.Fact]) -> None:
    """An adapter whose rank happens to be the number of facts has no column for each."""
    factors = LowRank(torch.ones(4, 6), torch.ones(3, 6))
    patch = WeightPatch({cg.Site(0, "mlp.down"): factors}, Header(method="lora"))
    assert split_patch(patch, len(facts)) == []


def test_the_fact_that_causes_damage_is_named(
    pocket: LanguageModel, facts: list[cg.Fact], memit: Patch
) -> None:
    """One part of an edit, thirty times as large, is found among the others."""
    parts = split_patch(memit, len(facts))
    bad = 3
    parts[bad] = parts[bad].scale(30.0)
    found = cg.guard(pocket, parts, facts, sample=SAMPLE)
    assert found.verdict is not GuardVerdict.FREE
    assert found.causes[0].facts == (bad,)
    assert found.list_causes()[0][0] == f"{facts[bad].prompt} {facts[bad].target}"
    assert "without" in repr(found)


def test_an_edit_can_be_made_again_without_a_fact(
    pocket: LanguageModel, facts: list[cg.Fact], memit: Patch
) -> None:
    parts = split_patch(memit, len(facts))
    parts[0] = parts[0].scale(30.0)
    asked: list[int] = []

    def remake(left: list[cg.Fact]) -> Patch:
        asked.append(len(left))
        rest = [parts[facts.index(fact)] for fact in left]
        total = rest[0]
        for one in rest[1:]:
            total += one
        return total

    found = cg.guard(pocket, remake(facts), facts, sample=SAMPLE, remake=remake)
    assert asked[1:] == [len(facts) - 1] * len(facts)
    assert found.causes[0].facts == (0,)


def test_growth_of_norms(pocket: LanguageModel) -> None:
    site = cg.Site(0, "mlp.down")
    weight = pocket.weight(site).detach()
    double = WeightPatch({site: Dense(weight.clone())}, Header(method="double"))
    assert measure_norm_growth(pocket, [double]) == pytest.approx(1.0)
    assert measure_norm_growth(pocket, [double, double]) == pytest.approx(2.0)
    assert measure_norm_growth(pocket, [WeightPatch({}, Header(method="none"))]) is None


def test_a_baseline_serves_several_edits(
    pocket: LanguageModel, facts: list[cg.Fact], memit: Patch
) -> None:
    baseline = Baseline(pocket, facts, sample=SAMPLE)
    again = cg.guard(pocket, memit, facts, sample=SAMPLE, baseline=baseline, causes=False)
    alone = cg.guard(pocket, memit, facts, sample=SAMPLE, causes=False)
    assert again.damages == alone.damages


def test_active_patches_belong_to_the_unedited_model(
    pocket: LanguageModel, facts: list[cg.Fact], memit: Patch
) -> None:
    with memit.apply(pocket):
        found = cg.guard(pocket, WeightPatch({}, Header(method="none")), facts, sample=SAMPLE)
    assert found.verdict is GuardVerdict.FREE


@pytest.mark.parametrize("options", [{"sample": 1}, {"confidence": 1.0}, {"limits": {"x": (0, 1)}}])
def test_bad_options_are_refused(
    pocket: LanguageModel, memit: Patch, options: dict[str, object]
) -> None:
    with pytest.raises(BadConfig):
        cg.guard(pocket, memit, **options)


def test_report_is_plain_data(pocket: LanguageModel, facts: list[cg.Fact], memit: Patch) -> None:
    found = cg.guard(pocket, memit, sample=SAMPLE, causes=False)
    assert [one.prompt for one in found.facts] == [one.prompt for one in facts]
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert plain["verdict"] in ("free", "costly")
    assert plain["decided_by"] in {str(one) for one in Measure}
