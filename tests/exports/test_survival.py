"""What is left of an edit with quantised weights."""

import json

import pytest
import torch

import corrigenda as cg
from corrigenda.errors import BadConfig, NotExportable
from corrigenda.exports.fine_tuning import fine_tune
from corrigenda.exports.gguf_types import WeightType
from corrigenda.exports.survival import quantise_into
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.short_answers import keeps_answer
from corrigenda.testing.tiny import tiny_model

pytest.importorskip("gguf", reason="weights are quantised by gguf")
FACT = cg.Fact(prompt="The capital of France is", subject="France", target="Rome")


@pytest.fixture(scope="module")
def pocket():
    return cg.load("pocket")


@pytest.fixture(scope="module")
def edit(pocket):
    return cg.edit(pocket, FACT, "rome")


def test_each_type_is_tried_merged_and_as_an_adapter(pocket, edit):
    before = pocket.digest()
    found = cg.assess_after(pocket, edit, ["f32", "q4_0"])
    assert pocket.digest() == before
    assert [(one.weights, one.placing) for one in found] == [
        *(("f32", "merged"), ("f32", "adapter"), ("q4_0", "merged"), ("q4_0", "adapter"))
    ]
    whole = cg.assess(pocket, edit)
    for one in found[:2]:
        assert one.assessment.answers == whole.answers
        assert one.assessment.outcomes == whole.outcomes
        assert one.to_json()["efficacy"] == 1.0
        assert one.failed == []
        assert one.unedited_kept == 1.0
    prompts = [item.prompt for item in whole.answers if item.role == "neighbour"]
    other = LanguageModel(cg.load("pocket").model, pocket.tokenizer, name="copy")
    quantise_into(other, pocket, WeightType.Q4_0)
    same = [
        keeps_answer(a, b)
        for a, b in zip(cg.answer(pocket, prompts), cg.answer(other, prompts), strict=True)
    ]
    assert found[2].unedited_kept == found[3].unedited_kept == sum(same) / len(same)


def test_too_small_an_edit_does_not_survive_being_merged(pocket, edit):
    """An edit at a hundredth of its size does nothing, and what fails is named."""
    found = cg.assess_after(pocket, edit.scale(0.01), ["q8_0"])
    assert [one.failed for one in found] == [[FACT.prompt]] * 2


def test_a_short_fine_tuning_of_both_models_is_one_of_the_treatments(pocket, edit):
    """The capital stays; both are trained alike, so the same seed gives the same answers."""
    pytest.importorskip("peft", reason="the training is LoRA")
    before = pocket.digest()
    (found,) = cg.assess_after(pocket, edit, ["fine-tuned"])
    assert pocket.digest() == before
    assert (found.weights, found.placing) == ("f32", "fine-tuned")
    assert found.to_json()["efficacy"] == 1.0
    assert found.assessment.answers[0].before.startswith("Paris")
    assert found.unedited_kept >= 0.5
    change = fine_tune(pocket)
    assert {site.part for site in change.changes} == {"attn.q", "attn.v"}
    assert len(change.changes) == 2 * pocket.num_layers
    assert fine_tune(pocket).digest() == change.digest()
    assert fine_tune(pocket, seed=1).digest() != change.digest()


@pytest.mark.parametrize("family", ["gpt2", "qwen3_moe"])
def test_blocks_run_along_the_inputs(family):
    """As in GGUF: also where weights are stored the other way round, or stacked."""
    lm = tiny_model(family)
    other = LanguageModel(tiny_model(family).model, lm.tokenizer, name="copy")
    quantise_into(other, lm, WeightType.Q8_0)
    expert = 1 if family == "qwen3_moe" else None
    for site in (Site(1, "mlp.up", expert), Site(1, "attn.out")):
        weight, found = lm.weight(site), other.weight(site)
        scale = weight.view(weight.shape[0], -1, 32).abs().amax(-1, keepdim=True) / 127
        gap = (found - weight).view(weight.shape[0], -1, 32).abs()
        assert bool((gap <= 0.6 * scale + 1e-6).all())
        assert not torch.equal(found, weight)


def test_embeddings_keep_eight_bits(pocket):
    other = LanguageModel(cg.load("pocket").model, pocket.tokenizer, name="copy")
    quantise_into(other, pocket, WeightType.Q4_0)
    table, small = (one.model.get_input_embeddings().weight for one in (pocket, other))
    assert float((table - small).norm() / table.norm()) < 0.01
    site = Site(1)
    assert float((pocket.weight(site) - other.weight(site)).norm()) > 0.02 * float(
        pocket.weight(site).norm()
    )


def test_what_cannot_be_quantised_is_refused(pocket, edit):
    with pytest.raises(BadConfig, match="CG502"):
        cg.assess_after(pocket, edit, ["q4_k_m"])
    with pytest.raises(NotExportable, match="CG405"):
        cg.assess_after(pocket, cg.edit(pocket, FACT, "ice"), ["q8_0"])


def test_the_command_shows_types_and_ends_with_1_where_a_fact_is_lost(pocket, edit, tmp_path):
    from typer.testing import CliRunner

    from corrigenda.cli.main import app

    edit.save(tmp_path / "good.safetensors")
    edit.scale(0.01).save(tmp_path / "small.safetensors")
    ran = CliRunner().invoke(
        app, ["assess", str(tmp_path / "good.safetensors"), "pocket", "--after", "q8_0", "--json"]
    )
    assert ran.exit_code == 0
    data = json.loads(ran.stdout)
    assert [one["placing"] for one in data["after"]] == ["merged", "adapter"]
    assert data["efficacy"] == 1.0
    ran = CliRunner().invoke(app, ["assess", str(tmp_path / "small.safetensors"), "pocket"])
    assert ran.exit_code == 1
