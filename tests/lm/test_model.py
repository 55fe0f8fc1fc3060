import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from corrigenda.errors import (
    PickleRefused,
    QuantisedWeights,
    SlowTokenizer,
    UnknownModel,
    UnknownSite,
)
from corrigenda.lm import loading
from corrigenda.lm.hooks import scatter_rows
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, Tokens, key, state, value, write
from corrigenda.testing.tiny import FAMILIES, tiny_model

ROWS = [[5, 6, 7, 8, 9, 10], [11, 12, 13]]
TOKENS = Tokens.pad(ROWS, 0)
MASK = TOKENS.mask.bool()


@pytest.fixture
def gpt2():
    return tiny_model("gpt2")


@pytest.fixture
def llama():
    return tiny_model("llama")


@pytest.fixture
def moe():
    return tiny_model("qwen3_moe", layers=2)


# Weights


def test_gpt2_weights_are_transposed(gpt2):
    block = gpt2.model.transformer.h[1]
    assert torch.equal(gpt2.weight(Site(1)), block.mlp.c_proj.weight.T)
    assert torch.equal(gpt2.weight(Site(1, "mlp.up")), block.mlp.c_fc.weight.T)
    # Square: no shape could tell the orientation.
    assert torch.equal(gpt2.weight(Site(1, "attn.out")), block.attn.c_proj.weight.T)
    for index, part in enumerate(("attn.q", "attn.k", "attn.v")):
        columns = slice(32 * index, 32 * (index + 1))
        assert torch.equal(gpt2.weight(Site(1, part)), block.attn.c_attn.weight[:, columns].T)
        assert torch.equal(gpt2.bias(Site(1, part)), block.attn.c_attn.bias[columns])


def test_neox_queries_keys_and_values_are_interleaved_by_head():
    lm = tiny_model("gpt_neox", layers=1)
    fused = lm.model.gpt_neox.layers[0].attention.query_key_value.weight
    second_head = lm.weight(Site(0, "attn.k"))[8:16]
    assert torch.equal(second_head, fused[24 + 8 : 24 + 16])


def test_phi3_gate_comes_before_up():
    lm = tiny_model("phi3", layers=1)
    mlp = lm.model.model.layers[0].mlp
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    gate, up = x @ lm.weight(Site(0, "mlp.gate")).T, x @ lm.weight(Site(0, "mlp.up")).T
    expected = (torch.nn.functional.silu(gate) * up) @ lm.weight(Site(0)).T
    torch.testing.assert_close(expected, mlp(x))
    assert lm.weight(Site(0, "attn.q")).shape == (32, 32)
    assert lm.weight(Site(0, "attn.v")).shape == (16, 32)


@pytest.mark.parametrize(
    ("family", "part"), [("gpt2", "attn.v"), ("llama", "mlp.down"), ("phi3", "mlp.up")]
)
def test_weights_are_views(family, part):
    lm = tiny_model(family, layers=1)
    site = Site(0, part)
    name = lm.parameter_name(site)
    parameter = dict(lm.model.named_parameters())[name]
    assert lm.weight(site).untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()


@pytest.mark.parametrize("family", FAMILIES)
def test_names_lead_to_modules_and_parameters(family):
    lm = tiny_model(family, layers=1)
    site = Site(0, "mlp.down", 1 if lm.num_experts(0) else None)
    assert lm.model.get_submodule(lm.module_path(site)) is lm.module(site)
    assert lm.parameter_name(site) in lm.model.state_dict()
    assert lm.parameter_name(site).startswith(lm.module_path(site) + ".")


def test_write_refuses_other_shapes(gpt2):
    with pytest.raises(ValueError, match=r"shape \(32, 128\), not \(128, 32\)"):
        gpt2.write(Site(0), torch.zeros(128, 32))


def test_write_converts_to_the_dtype_of_the_model():
    lm = tiny_model("gpt2", dtype=torch.bfloat16)
    new = torch.randn(32, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lm.write(Site(2), new)
    assert lm.dtype == torch.bfloat16
    assert torch.equal(lm.weight(Site(2)), new.bfloat16())


def test_quantised_models_are_not_written(llama):
    assert not llama.is_quantised
    llama.model.config.quantization_config = {"quant_method": "bitsandbytes"}
    assert llama.is_quantised
    with pytest.raises(QuantisedWeights, match=r"CG304.*\n.*0\.mlp\.down"):
        llama.write(Site(0), llama.weight(Site(0)))


def test_integer_storage_is_no_weight(llama):
    module = llama.module(Site(0))
    module.weight = torch.nn.Parameter(torch.zeros(32, 80, dtype=torch.int8), requires_grad=False)
    with pytest.raises(QuantisedWeights, match=r"CG304.*int8"):
        llama.weight(Site(0))


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (Site(4), "no layer 4; the model has layers 0 to 3"),
        (Site(-1), "no layer -1"),
        (Site(0, "mlp.gate"), r"gpt2 models have no mlp\.gate"),
        (Site(0, "mlp.dawn"), r'(?s)"mlp.dawn" is no part.*mean "mlp\.down"'),
        (Site(0, "mlp.down", 0), "has no experts"),
    ],
)
def test_unknown_sites(gpt2, site, message):
    for use in (gpt2.weight, gpt2.bias, gpt2.module, gpt2.parameter_name):
        with pytest.raises(UnknownSite, match=message):
            use(site)
    with pytest.raises(UnknownSite, match=message):
        gpt2.tap(TOKENS, [key(site)])


def test_sizes(gpt2, llama, moe):
    assert (gpt2.num_layers, gpt2.d_model, gpt2.d_inner, gpt2.context_length) == (4, 32, 128, 128)
    assert (llama.num_layers, llama.d_model, llama.d_inner) == (4, 32, 80)
    assert moe.d_inner == 24


def test_parameters_are_frozen_and_dropout_is_off():
    lm = tiny_model("gpt2")
    model = lm.model.train().requires_grad_(True)
    LanguageModel(model, lm.tokenizer)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


# Capturing


def test_positions_pick_from_each_row(llama):
    points = [state(1), key(Site(2)), write(Site(0, "attn.out"))]
    every = llama.tap(TOKENS, points)
    one = llama.tap(TOKENS, points, positions=torch.tensor([5, 2]))
    two = llama.tap(TOKENS, points, positions=torch.tensor([[5, 0], [2, 1]]))
    for point in points:
        assert torch.equal(one[point], every[point][[0, 1], [5, 2]])
        assert torch.equal(two[point][:, 0], one[point])
        assert torch.equal(two[point][:, 1], every[point][[0, 1], [0, 1]])


def test_the_pass_stops_behind_the_last_point(llama):
    ran = []
    for index, block in enumerate(llama.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    llama.tap(TOKENS, [key(Site(2)), state(0)])
    assert ran == [0, 1]


def test_nothing_to_capture_runs_nothing(llama):
    llama.blocks[0].register_forward_pre_hook(lambda *_: pytest.fail("ran"))
    assert llama.tap(TOKENS, []) == {}


def test_captured_tensors_can_be_trained_on(llama):
    found = llama.tap(TOKENS, [state(1)])[state(1)]
    weight = torch.ones(32, requires_grad=True)
    (found * weight).sum().backward()
    assert weight.grad is not None


def test_only_sub_blocks_write(llama):
    with pytest.raises(UnknownSite, match=r"CG303.*mlp\.up does not write"):
        llama.tap(TOKENS, [write(Site(0, "mlp.up"))])


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "olmo2"])
def test_value_and_write_differ_where_a_norm_stands_between(family):
    lm = tiny_model(family)
    for part in ("mlp.down", "attn.out"):
        site = Site(1, part)
        found = lm.tap(TOKENS, [value(site), write(site)])
        assert not torch.allclose(found[value(site)], found[write(site)])


def test_no_hook_is_left_behind(llama):
    def attached():
        return [m for m in llama.model.modules() if m._forward_hooks or m._forward_pre_hooks]

    llama.tap(TOKENS, [state(1), key(Site(0, "attn.q"))])
    assert not attached()
    with llama.swap({state(1): lambda x: x}):
        assert attached()
    assert not attached()

    def fail(_):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"), llama.swap({key(Site(0)): fail}):
        llama.logits(TOKENS)
    assert not attached()
    with pytest.raises(UnknownSite), llama.swap({state(1): fail, key(Site(9)): fail}):
        pytest.fail("entered")
    assert not attached()


# Swapping


def test_inner_swaps_see_what_outer_ones_put_in(llama):
    site = Site(1)
    base = llama.tap(TOKENS, [value(site)])[value(site)]
    with llama.swap({value(site): lambda x: x + 1}):
        with llama.swap({value(site): lambda x: x * 2}):
            found = llama.tap(TOKENS, [value(site)])[value(site)]
        once = llama.tap(TOKENS, [value(site)])[value(site)]
    assert torch.equal(found, (base + 1) * 2)
    assert torch.equal(once, base + 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", ["mlp.down", "attn.q"])
def test_an_added_term_equals_a_change_of_the_weight(family, part):
    lm = tiny_model(family, layers=2)
    site = Site(1, part, 1 if part == "mlp.down" and lm.num_experts(1) else None)
    old = lm.weight(site).clone()
    change = 0.3 * torch.randn(old.shape, generator=torch.Generator().manual_seed(0))
    before = lm.logits(TOKENS)
    with lm.add({site: lambda x, _: x @ change.T}):
        added = lm.logits(TOKENS)[MASK]
    with lm.add({site: lambda *_: None}):
        assert torch.equal(lm.logits(TOKENS), before)
    lm.write(site, old + change)
    torch.testing.assert_close(added, lm.logits(TOKENS)[MASK], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "wide"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)]
)
def test_terms_get_at_least_float32_and_sums_are_rounded_once(dtype, wide):
    lm = tiny_model("llama", dtype=dtype)
    site, seen = Site(1), {}

    def term(x, output):
        seen["x"], seen["before"] = x, output
        return torch.full_like(output, 1e-3, dtype=wide)

    with lm.add({site: term}):
        after = lm.tap(TOKENS, [value(site)])[value(site)]
    assert seen["x"].dtype == wide
    assert torch.equal(after, (seen["before"].to(wide) + 1e-3).to(dtype))


def test_a_term_may_read_another_point(llama):
    site, other = Site(1), key(Site(1, "mlp.up"))
    seen = {}
    with llama.add({site: lambda x, _: seen.setdefault("x", x)}, inputs={site: other}):
        read = llama.tap(TOKENS, [other, value(site)])[other]
    assert torch.equal(seen["x"], read)


def test_scattered_terms_leave_other_rows_to_the_bit():
    output = torch.tensor([[-0.0, 0.0], [1.0, -2.0], [0.0, 3.0]])
    after = output + scatter_rows(torch.ones(1, 2), torch.tensor([1]), 3)
    assert torch.equal(after[1], torch.tensor([2.0, -1.0]))
    for row in (0, 2):
        assert torch.equal(after[row].view(torch.int32), output[row].view(torch.int32))


def test_gradients_flow_through_swaps(llama):
    delta = torch.zeros(32, requires_grad=True)
    with llama.swap({value(Site(1)): lambda x: x + delta}):
        llama.logits(TOKENS)[0, -1, 7].backward()
    assert delta.grad is not None
    assert float(delta.grad.norm()) > 0


def test_swapping_changes_later_positions_only(gpt2):
    before = gpt2.logits(TOKENS)
    position = 3

    def push(x):
        x = x.clone()
        x[:, position] += 5
        return x

    with gpt2.swap({state(1): push}):
        after = gpt2.logits(TOKENS)
    assert torch.equal(before[:, :position], after[:, :position])
    assert not torch.allclose(before[0, position:], after[0, position:])


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3"])
def test_the_key_of_a_fused_part_is_its_own(family):
    lm = tiny_model(family)
    names = ("attn.q", "attn.k", "attn.v")
    points = [value(Site(1, part)) for part in names]
    before = lm.tap(TOKENS, points)
    with lm.swap({key(Site(1, "attn.k")): lambda x: x + 1}):
        after = lm.tap(TOKENS, points)
    changed = [not torch.equal(before[point], after[point]) for point in points]
    assert changed == [False, True, False]


# Experts


def test_expert_weights(moe):
    experts = moe.model.model.layers[1].mlp.experts
    assert torch.equal(moe.weight(Site(1, "mlp.down", 2)), experts.down_proj[2])
    assert torch.equal(moe.weight(Site(1, "mlp.gate", 2)), experts.gate_up_proj[2, :24])
    assert torch.equal(moe.weight(Site(1, "mlp.up", 2)), experts.gate_up_proj[2, 24:])
    assert moe.bias(Site(1, "mlp.down", 2)) is None
    with pytest.raises(UnknownSite, match=r"experts 0 to 3(.|\n)*Name one"):
        moe.weight(Site(1))
    with pytest.raises(UnknownSite, match="experts 0 to 3"):
        moe.weight(Site(1, "mlp.down", 4))


def test_each_token_has_keys_at_its_experts_only(moe):
    points = [key(Site(1, "mlp.down", expert)) for expert in range(4)]
    found = moe.tap(TOKENS, points)
    routed = torch.stack([~found[point].isnan().any(-1) for point in points])
    assert torch.equal(routed.sum(0), torch.full_like(TOKENS.ids, 2))
    assert torch.equal(routed, torch.stack([~found[p].isnan().all(-1) for p in points]))


@pytest.mark.parametrize("part", ["mlp.down", "mlp.up", "mlp.gate"])
def test_adding_at_an_expert_equals_changing_its_weight(moe, part):
    site = Site(0, part, 1)
    old = moe.weight(site).clone()
    change = 0.3 * torch.randn(old.shape, generator=torch.Generator().manual_seed(0))
    keys = {}
    hooks = {
        key(site): lambda x: keys.setdefault("x", x),
        value(site): lambda y: y + keys["x"] @ change.T,
    }
    before = moe.logits(TOKENS)
    with moe.swap(hooks):
        added = moe.logits(TOKENS)[MASK]
    moe.write(site, old + change)
    written = moe.logits(TOKENS)[MASK]
    torch.testing.assert_close(added, written, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before[MASK], written, atol=1e-2)
    moe.write(site, old)
    assert torch.equal(moe.logits(TOKENS), before)


# Digest


@pytest.mark.parametrize("family", FAMILIES)
def test_one_bit_of_any_parameter_changes_the_digest(family):
    lm = tiny_model(family, layers=1)
    before = lm.digest()
    assert lm.digest() == before
    for name, parameter in lm.model.named_parameters():
        bits = parameter.data.view(torch.int32).view(-1)
        bits[-1] ^= 1
        assert lm.digest() != before, name
        bits[-1] ^= 1
    assert lm.digest() == before


def test_digest_sees_dtype_and_configuration_but_not_names():
    lm = tiny_model("llama", layers=1)
    before = lm.digest()
    assert tiny_model("llama", layers=1).digest() == before
    assert tiny_model("llama", layers=1, seed=1).digest() != before
    assert LanguageModel(lm.model, lm.tokenizer, name="other").digest() == before
    lm.model.config._name_or_path = "elsewhere"
    assert lm.digest() == before
    lm.model.config.rms_norm_eps = 1e-3
    assert lm.digest() != before
    zeros = tiny_model("llama", layers=1)
    other = tiny_model("llama", layers=1)
    for model in (zeros.model, other.model):
        for parameter in model.parameters():
            parameter.zero_()
    other.model.to(torch.bfloat16)
    assert zeros.digest() != other.digest()


def test_a_copy_has_the_same_digest(gpt2):
    assert copy.deepcopy(gpt2).digest() == gpt2.digest()


# Loading


@pytest.fixture
def folder(tmp_path):
    lm = tiny_model("llama", layers=2)
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "qwen3_moe", "phi3"])
def test_loading_gives_the_same_model(family, tmp_path):
    lm = tiny_model(family, layers=2, dtype=torch.bfloat16)
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    loaded = LanguageModel.load(tmp_path)
    assert loaded.digest() == lm.digest()
    assert loaded.name == str(tmp_path)
    assert loaded.tokenizer("Rome is").input_ids == lm.tokenizer("Rome is").input_ids
    torch.testing.assert_close(loaded.logits(TOKENS)[MASK], lm.logits(TOKENS)[MASK])
    assert LanguageModel.load(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_unknown_models(tmp_path):
    with pytest.raises(UnknownModel, match=r'(?s)CG301.*"no/such/model".*Known: '):
        LanguageModel.load("no/such/model")
    with pytest.raises(UnknownModel, match='mean "pocket"'):
        LanguageModel.load("pokcet")
    with pytest.raises(UnknownModel, match=r"no \*\.safetensors file"):
        LanguageModel.load(tmp_path)


def test_a_missing_model_of_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "files", lambda _: tmp_path)
    with pytest.raises(UnknownModel, match='"pocket-gpt2" is not part of this installation'):
        LanguageModel.load("pocket-gpt2")


def test_models_of_the_package_are_found_by_name(monkeypatch, folder, tmp_path):
    home = tmp_path / "package" / "pocket"
    home.mkdir(parents=True)
    (home / "pocket").symlink_to(folder)
    monkeypatch.setattr(loading, "files", lambda _: tmp_path / "package")
    assert LanguageModel.load("pocket").name == "pocket"


def test_pickles_are_refused(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(PickleRefused, match=r"CG403.*pytorch_model\.bin"):
        LanguageModel.load(folder)


def test_truncated_weights_are_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UnknownModel, match="CG301"):
        LanguageModel.load(folder)


def test_missing_weights_are_refused(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UnknownModel, match=r"(?s)CG301.*layers\.1\.mlp\.down_proj"):
        LanguageModel.load(folder)


def test_an_unknown_architecture_is_no_model(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "nonsense"}))
    with pytest.raises(UnknownModel, match="CG301"):
        LanguageModel.load(folder)


class _Slow(PreTrainedTokenizerFast):
    is_fast = False


def test_slow_tokenizers_are_refused(llama):
    slow = _Slow(tokenizer_object=llama.tokenizer.backend_tokenizer)
    with pytest.raises(SlowTokenizer, match=r"CG305.*character offsets"):
        LanguageModel(llama.model, slow)
