"""What leaves the library: adapters that `peft` loads, checkpoints that `transformers` loads."""

import copy
import json
import resource
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from corrigenda.errors import CorruptFile, NotExportable, WriteFailed, WrongBase
from corrigenda.exports.adapter_rules import check_adapter
from corrigenda.exports.merged import export_merged
from corrigenda.exports.peft import export_peft
from corrigenda.linalg import LowRank
from corrigenda.lm.sites import Site
from corrigenda.patch import Dense, Header, WeightPatch, header_for
from corrigenda.testing.tiny import tiny_model

SITES = "0.mlp.down 2.mlp.down 2.attn.out"


def logits_of_adapter(lm, folder):
    peft = pytest.importorskip("peft", reason="the adapter is read by peft")
    ids = torch.tensor([[5, 9, 17, 30, 2, 44]])
    wrapped = peft.PeftModel.from_pretrained(copy.deepcopy(lm.model), folder)
    with torch.no_grad():
        return wrapped(input_ids=ids).logits, wrapped.merge_and_unload()(input_ids=ids).logits


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 9, 17, 30, 2, 44]])).logits


def distance(first, second):
    return float((first - second).norm() / second.norm())


def assert_adapter(patch, lm, folder, *, padded=True):
    plain = logits_of(lm.model)
    export_peft(patch, lm, folder, padded=padded)
    if padded:
        assert check_adapter(folder) == []
        assert check_adapter(folder, "sglang") == []
    with patch.apply(lm):
        merged = logits_of(lm.model)
    assert distance(plain, merged) > 1e-3
    for logits in logits_of_adapter(lm, folder):
        assert distance(logits, merged) <= 1e-4


@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "error:Found missing adapter keys")
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj", "gpt_neox", "gemma2"])
def test_an_adapter_gives_the_merged_logits(family, padded, make_patch, tmp_path, bits, same_bits):
    lm = tiny_model(family)
    before = bits(lm)
    assert_adapter(make_patch(lm, SITES), lm, tmp_path / "adapter", padded=padded)
    assert same_bits(lm, before)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] == (family == "gpt2")
    assert config["r"] == config["lora_alpha"] == (8 if padded else 2)
    assert not config.get("rank_pattern")


@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "error:Found missing adapter keys")
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_ranks_may_differ_by_layer(family, padded, make_patch, tmp_path):
    """Ten layers and more, so that one layer's name is the beginning of another's."""
    lm = tiny_model(family, layers=12)
    wide = make_patch(lm, "1.mlp.down 11.mlp.down", seed=4)
    many = wide + make_patch(lm, "1.mlp.down 10.mlp.down", seed=8)
    assert {change.rank for change in many.changes.values()} == {2, 4}
    assert_adapter(many, lm, tmp_path, padded=padded)


def test_a_uniform_adapter_names_modules_and_layers(make_patch, tmp_path):
    """What shares a name and a layer with a change is there too, as zeros."""
    lm = tiny_model("gpt2", layers=12)
    export_peft(make_patch(lm, "1.mlp.down 11.mlp.up"), lm, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["c_fc", "c_proj"]
    assert config["layers_to_transform"] == [1, 11]
    assert config["r"] == config["lora_alpha"] == 8
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    changed = {name for name, tensor in tensors.items() if tensor.any()}
    assert {name.split(".")[4] for name in tensors} == {"1", "11"}
    assert len(tensors) == 2 * 2 * 3
    assert {".".join(name.split(".")[4:7]) for name in changed} == {"1.mlp.c_proj", "11.mlp.c_fc"}
    assert {min(tensor.shape) for tensor in tensors.values()} == {8}


def test_a_rank_beyond_the_engines_is_refused(tmp_path):
    lm = tiny_model("llama")
    d_out, d_in = lm.weight(Site(1)).shape
    change = LowRank(torch.ones(d_out, 513), torch.ones(d_in, 513))
    patch = WeightPatch({Site(1): change}, header_for(lm, method="wide"))
    with pytest.raises(NotExportable, match=r"rank 513.*up to 512"):
        export_peft(patch, lm, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    export_peft(patch, lm, tmp_path / "adapter", padded=False)
    assert "rank 513 exceeds" in check_adapter(tmp_path / "adapter", max_rank=512)[0]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"bias": "lora_only"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"use_dora": True}, "use_dora"),
        ({"r": 32, "lora_alpha": 32}, "rank 32 exceeds the limit 16"),
        ({"rank_pattern": {"layers.1.mlp.down_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"layers.1.mlp.down_proj": 2}}, "alpha_pattern"),
        ({"target_modules": "all-linear"}, "no list"),
        ({"target_modules": ["model.layers.1.mlp.down_proj"]}, "path"),
        ({"target_modules": ["up_proj"]}, "lacks down_proj"),
    ],
)
def test_the_check_finds_what_engines_refuse(change, problem, make_patch, llama, tmp_path):
    export_peft(make_patch(llama, "1.mlp.down"), llama, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert problem in " ".join(check_adapter(tmp_path))


def test_the_check_finds_foreign_tensors_and_damage(make_patch, llama, tmp_path):
    export_peft(make_patch(llama, "1.mlp.down"), llama, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"base_model.model.model.norm.weight": torch.ones(2)}, path)
    assert "neither lora_A nor lora_B" in " ".join(check_adapter(tmp_path))
    path.write_bytes(b"no tensors")
    with pytest.raises(CorruptFile, match="CG402"):
        check_adapter(tmp_path)


def test_row_changes_and_dense_ones_of_low_rank_are_exact(make_patch, tmp_path):
    lm = tiny_model("llama")
    rows = make_patch(lm, "1.mlp.down", "rows")
    low = make_patch(lm, "2.mlp.down")
    dense = WeightPatch({Site(2): Dense(low.changes[Site(2)].to_dense())}, low.header)
    assert_adapter(rows + dense, lm, tmp_path, padded=False)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == 3
    assert list(config["rank_pattern"].values()) == [2]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3"])
def test_slices_of_fused_weights(family, make_patch, tmp_path):
    lm = tiny_model(family)
    assert_adapter(make_patch(lm, "1.attn.q 1.attn.v"), lm, tmp_path)


def test_parts_that_read_the_same_directions_share_them(make_patch, tmp_path):
    lm = tiny_model("gpt2")
    two = make_patch(lm, "1.attn.q 1.attn.v")
    shared = two.changes[Site(1, "attn.q")].right
    same = {site: LowRank(change.left, shared) for site, change in two.changes.items()}
    assert_adapter(WeightPatch(same, two.header), lm, tmp_path, padded=False)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == shared.shape[1]


def test_what_cannot_be_an_adapter_is_refused(make_patch, llama, tmp_path):
    folder = tmp_path / "adapter"
    with pytest.raises(NotExportable, match=r"CG405.*rank \d+.*\n.*1\.mlp\.down"):
        export_peft(make_patch(llama, "1.mlp.down", "dense"), llama, folder)
    with pytest.raises(NotExportable, match="empty"):
        export_peft(WeightPatch({}, Header(method="m")), llama, folder)
    small = WeightPatch({Site(1): LowRank(torch.ones(2, 1), torch.ones(3, 1))}, Header(method="m"))
    with pytest.raises(WrongBase, match="shape"):
        export_peft(small, llama, folder)
    moe = tiny_model("qwen3_moe")
    with pytest.raises(NotExportable, match="expert"):
        export_peft(make_patch(moe, "1.mlp.down#1"), moe, folder)
    assert not folder.exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_merged_checkpoint_is_the_patched_model(
    family, dtype, make_patch, tmp_path, bits, same_bits
):
    lm = tiny_model(family, dtype=dtype)
    before = bits(lm)
    patch = make_patch(lm, SITES)
    export_merged(patch, lm, tmp_path)
    assert same_bits(lm, before)
    assert len(lm.patches) == 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    with patch.apply(lm):
        patched = bits(lm)
        for name, tensor in again.state_dict().items():
            assert torch.equal(tensor.contiguous().reshape(-1).view(torch.uint8), patched[name])
    text = "The capital of France"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(text)["input_ids"] == lm.tokenizer(text)["input_ids"]


def test_a_checkpoint_holds_every_merged_patch(make_patch, llama, tmp_path):
    one, two = make_patch(llama, "1.mlp.down", seed=1), make_patch(llama, "2.mlp.down", seed=2)
    with one.apply(llama), two.apply(llama):
        expected = logits_of(llama.model)
        export_merged(one, llama, tmp_path / "a")
        assert tuple(llama.patches) == (one, two)
    with one.apply(llama):
        export_merged(two, llama, tmp_path / "b")
    for name in "ab":
        again = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert torch.equal(logits_of(again), expected)


def test_run_time_patches_cannot_be_in_a_checkpoint(make_patch, llama, tmp_path):
    one, two = make_patch(llama, "1.mlp.down", seed=1), make_patch(llama, "2.mlp.down", seed=2)
    with one.apply(llama, mode="runtime"):
        for patch in (one, two):
            with pytest.raises(NotExportable, match="test"):
                export_merged(patch, llama, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_the_wrong_model_is_not_exported(make_patch, llama, tmp_path):
    other = make_patch(tiny_model("llama", seed=1), SITES)
    for export in (export_merged, export_peft):
        with pytest.raises(WrongBase):
            export(other, llama, tmp_path)
    assert list(tmp_path.iterdir()) == []
    with other.apply(llama, force=True):
        export_peft(other, llama, tmp_path)


def test_an_adapter_must_hold_all_edits_of_a_sequence(make_patch, llama, tmp_path):
    one = make_patch(llama, "1.mlp.down", seed=1)
    with one.apply(llama):
        two = make_patch(llama, "2.mlp.down", seed=2)
    with pytest.raises(NotExportable, match="on top of others"):
        export_peft(two, llama, tmp_path)
    assert_adapter(one + two, llama, tmp_path)


def test_a_full_disk_leaves_the_old_checkpoint_and_the_model(
    make_patch, llama, tmp_path, bits, same_bits
):
    before = bits(llama)
    patch = make_patch(llama, SITES)
    export_merged(WeightPatch({}, header_for(llama, method="none")), llama, tmp_path)
    old = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with pytest.raises(WriteFailed, match="CG601"):
            export_merged(patch, llama, tmp_path)
        with pytest.raises(WriteFailed, match="CG601"):
            export_peft(patch, llama, tmp_path / "adapter")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert same_bits(llama, before)
    assert list((tmp_path / "adapter").iterdir()) == []
    (tmp_path / "adapter").rmdir()
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == old


def test_a_folder_that_cannot_be_made(make_patch, llama, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteFailed, match="could not be made"):
        export_peft(make_patch(llama, SITES), llama, tmp_path / "file" / "adapter")
