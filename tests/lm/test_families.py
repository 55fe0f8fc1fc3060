import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from corrigenda.errors import UnknownFamily, UnknownSite
from corrigenda.lm import families
from corrigenda.lm.families import Family, Slot
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import PARTS, Site
from corrigenda.testing.family import check_family, sites_of
from corrigenda.testing.tiny import FAMILIES, tiny_model
from corrigenda.testing.tokenizers import byte_level_bpe

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "vocab_size": 512,
    "pad_token_id": None,
}


def random_model(model_type, **more):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SHAPE, **more})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_holds(family):
    check_family(tiny_model(family, layers=2))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3", "olmo2"])
def test_families_hold_in_bfloat16(family):
    check_family(tiny_model(family, dtype=torch.bfloat16, layers=1))


def test_the_table_and_the_tiny_models_cover_each_other():
    assert {family.name for family in families.FAMILIES} == set(FAMILIES)
    for name in FAMILIES:
        assert tiny_model(name, layers=1).family.name == name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_is_found(family):
    lm = tiny_model(family, layers=1)
    missing = {"mlp.gate"} if family in ("gpt2", "gptj", "gpt_neox", "opt") else set()
    assert {site.part for site in sites_of(lm)} == set(PARTS) - missing


@pytest.mark.parametrize(
    ("model_type", "norms"),
    [
        ("olmo3", ("post_feedforward_layernorm", "post_attention_layernorm")),
        ("starcoder2", (None, None)),
        ("phi", (None, None)),
        ("glm4", ("post_mlp_layernorm", "post_self_attn_layernorm")),
    ],
)
def test_probing_finds_families_outside_the_table(model_type, norms):
    assert all(model_type not in family.model_types for family in families.FAMILIES)
    more = {"head_dim": 8} if model_type == "glm4" else {}
    lm = LanguageModel(random_model(model_type, **more), byte_level_bpe())
    assert (lm.family.mlp_norm, lm.family.attn_norm) == norms
    check_family(lm)


@pytest.mark.parametrize(
    ("model_type", "more", "reason"),
    [
        ("granite", {"residual_multiplier": 0.5}, "block 0 does not add"),
        ("cohere", {}, "head do not give the model's logits"),
        ("mixtral", {}, r"no module of a block looks like mlp\.down"),
    ],
)
def test_what_contradicts_the_guess_is_refused(model_type, more, reason):
    with pytest.raises(
        UnknownFamily, match=rf"CG302.*{model_type}.*{reason}(.|\n)*family=Family\("
    ):
        LanguageModel(random_model(model_type, **more), byte_level_bpe())


def test_opt_with_norms_behind_is_refused():
    model = random_model("opt", do_layer_norm_before=False, ffn_dim=64, word_embed_proj_dim=32)
    with pytest.raises(UnknownFamily, match="do_layer_norm_before = False"):
        LanguageModel(model, byte_level_bpe())


def test_a_family_can_be_declared():
    model = random_model("granite", residual_multiplier=1.0)
    declared = Family(
        name="mine",
        model_types=("granite",),
        blocks="model.layers",
        final_norm="model.norm",
        slots={"mlp.down": Slot("mlp.down_proj"), "attn.out": Slot("self_attn.o_proj")},
    )
    lm = LanguageModel(model, byte_level_bpe(), family=declared)
    assert torch.equal(lm.weight(Site(1)), model.model.layers[1].mlp.down_proj.weight)
    with pytest.raises(UnknownSite, match=r"mine models have no attn\.q"):
        lm.weight(Site(0, "attn.q"))


def test_check_family_notices_a_forgotten_norm():
    right = tiny_model("olmo2", layers=2)
    wrong = Family(
        name="wrong",
        model_types=("olmo2",),
        blocks="model.layers",
        final_norm="model.norm",
        slots=right.family.slots,
    )
    lm = LanguageModel(right.model, right.tokenizer, family=wrong)
    with pytest.raises(
        AssertionError, match=r"block 0: the state(.|\n)*tail after layer 0 \(value\)"
    ):
        check_family(lm)


def test_check_family_notices_exchanged_parts():
    right = tiny_model("gpt_neox", layers=1)
    slots = dict(right.family.slots)
    slots["attn.q"] = Slot("attention.query_key_value", "qkv")
    wrong = Family(
        name="wrong",
        model_types=("gpt_neox",),
        blocks="gpt_neox.layers",
        final_norm="gpt_neox.final_layer_norm",
        slots=slots,
    )
    lm = LanguageModel(right.model, right.tokenizer, family=wrong)
    with pytest.raises(AssertionError, match=r"0\.attn\.q: writing it changes 0\.attn\.k"):
        check_family(lm)
