"""GGUF files without an engine: what is written, what a base must be, what stays bit for bit."""

import copy
import importlib.util

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import Whitespace

from corrigenda.errors import CorruptFile, MissingExtra, NotExportable, WrongBase
from corrigenda.exports.gguf_adapter import export_gguf_adapter
from corrigenda.exports.gguf_base import GgufBase
from corrigenda.exports.gguf_layout import ARCHITECTURES, GgufLayout
from corrigenda.exports.gguf_model import export_gguf
from corrigenda.exports.gguf_types import WeightType, round_trip
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.patch import Header, WeightPatch, header_for
from corrigenda.patch.changes import dense
from corrigenda.testing.tiny import FAMILIES, tiny_model
from corrigenda.testing.tokenizers import byte_level_bpe

gguf = pytest.importorskip("gguf", reason="GGUF files are written by gguf")


def empty(lm):
    return WeightPatch({}, header_for(lm, method="none"))


@pytest.fixture
def llama_file(llama, tmp_path):
    """A GGUF file of the small Llama, in four bits."""
    return export_gguf(empty(llama), llama, tmp_path / "base.gguf", weight_type=WeightType.Q4_1)


def read(path):
    return {one.name: one for one in gguf.GGUFReader(path).tensors}


def bits_of(tensor):
    return tensor.tensor_type, tensor.data.tobytes()


def test_every_family_has_an_architecture_or_is_refused(make_patch, tmp_path):
    assert set(FAMILIES) - set(ARCHITECTURES) == {"gptj", "opt"}
    for family in ("gptj", "opt"):
        lm = tiny_model(family)
        with pytest.raises(NotExportable, match=r"CG405.*llama\.cpp runs no"):
            export_gguf_adapter(make_patch(lm, "1.mlp.down"), lm, tmp_path / "adapter.gguf")
        with pytest.raises(NotExportable, match=r"CG405.*llama\.cpp runs no"):
            export_gguf(empty(lm), lm, tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_holds_the_change_in_the_order_of_gguf(make_patch, llama, tmp_path):
    """Rows of queries and keys are permuted, those of the rest stay; alpha is the largest rank."""
    wide = make_patch(llama, "1.attn.q 1.attn.k 1.mlp.down", seed=4)
    patch = wide + make_patch(llama, "1.mlp.down", seed=9)
    reader = gguf.GGUFReader(export_gguf_adapter(patch, llama, tmp_path / "adapter.gguf"))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.type"] == "adapter"
    assert fields["general.architecture"] == "llama"
    assert fields["adapter.type"] == "lora"
    alpha = fields["adapter.lora.alpha"]
    assert alpha == 4
    parts = {one.name: torch.from_numpy(np.array(one.data)) for one in reader.tensors}
    layout = GgufLayout(llama)
    for site, name in ((Site(1, "attn.q"), "attn_q"), (Site(1), "ffn_down")):
        a, b = (parts[f"blk.1.{name}.weight.lora_{one}"] for one in "ab")
        found = b @ a * (alpha / b.shape[1])
        wanted = dense(patch.changes[site], torch.float32)
        order = layout.order(llama.module_path(site))
        assert (order is None) == (name == "ffn_down")
        wanted = wanted if order is None else wanted[order]
        assert torch.allclose(found, wanted, atol=1e-6)
    assert layout.order("model.layers.1.self_attn.q_proj").sort()[0].tolist() == list(range(32))


def test_a_base_of_another_kind_is_refused(make_patch, llama, llama_file, tmp_path):
    patch, out = make_patch(llama, "1.mlp.down"), tmp_path / "adapter.gguf"
    export_gguf_adapter(patch, llama, out, base=llama_file.path)
    out.unlink()
    others = {
        "architecture gpt2": tiny_model("gpt2"),
        "no tensor blk.1.ffn_down": tiny_model("llama", layers=1),
        "not the weight that the patch changes": tiny_model("llama", seed=1),
    }
    for reason, other in others.items():
        base = export_gguf(empty(other), other, tmp_path / "other.gguf").path
        for export in (export_gguf_adapter, export_gguf):
            with pytest.raises(WrongBase, match=f"CG401.*{reason}"):
                export(patch, llama, out, base=base)
    adapter = export_gguf_adapter(patch, llama, tmp_path / "a.gguf")
    with pytest.raises(WrongBase, match="of the kind adapter"):
        export_gguf_adapter(patch, llama, out, base=adapter)
    (tmp_path / "text.gguf").write_text("no model")
    for bad in (tmp_path / "text.gguf", tmp_path / "missing.gguf"):
        with pytest.raises(CorruptFile, match="CG402"):
            export_gguf_adapter(patch, llama, out, base=bad)
    assert not out.exists()


def test_a_base_of_another_shape_is_refused(llama, llama_file, tmp_path):
    with pytest.raises(WrongBase, match="has shape"):
        GgufBase(llama_file.path).require_weight("blk.1.ffn_down.weight", torch.ones(3, 4))


def test_an_unedited_file_is_copied_bit_for_bit(llama, llama_file, tmp_path):
    copy = export_gguf(empty(llama), llama, tmp_path / "copy.gguf", base=llama_file.path)
    assert copy.path.read_bytes() == llama_file.path.read_bytes()


def test_only_what_the_patch_changes_differs(make_patch, llama, llama_file, tmp_path, bits):
    before = bits(llama)
    patch = make_patch(llama, "1.mlp.down 2.attn.q")
    out = export_gguf(patch, llama, tmp_path / "new.gguf", base=llama_file.path)
    assert out.types == {"blk.1.ffn_down.weight": "f16", "blk.2.attn_q.weight": "q4_1"}
    assert out.notices == ()
    old, new = read(llama_file.path), read(out.path)
    differ = {
        name
        for name, tensor in new.items()
        if tensor.tensor_type != old[name].tensor_type
        or tensor.data.tobytes() != old[name].data.tobytes()
    }
    assert list(new) == list(old)
    assert differ == set(out.types)
    with patch.apply(llama):
        wanted = llama.weight(Site(1)).clone()
    found = GgufBase(out.path).dequantise("blk.1.ffn_down.weight")
    assert torch.allclose(found, wanted, atol=1e-3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in bits(llama).items())


def test_a_type_that_cannot_be_written_becomes_q8_0(make_patch, llama, llama_file, tmp_path):
    """A base in a type that the package only reads, as those of llama.cpp with a K in them."""
    name, base = "blk.2.attn_q.weight", tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(base, "llama")
    for one in GgufBase(llama_file.path).tensors.values():
        kind, data = one.tensor_type, one.data
        if one.name == name:
            kind = gguf.GGMLQuantizationType.MXFP4
            data = gguf.quants.quantize(GgufBase(llama_file.path).dequantise(name).numpy(), kind)
        writer.add_tensor(one.name, data, raw_shape=data.shape, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    patch = make_patch(llama, "2.attn.q")
    out = export_gguf(patch, llama, tmp_path / "new.gguf", base=base)
    assert out.types == {name: "q8_0"}
    assert "MXFP4" in out.notices[0]
    chosen = export_gguf(
        patch, llama, tmp_path / "new.gguf", base=base, weight_type=WeightType.BF16
    )
    assert chosen.types == {name: "bf16"}
    assert chosen.notices == ()


@pytest.mark.parametrize("kind", WeightType)
def test_types_are_those_of_the_package(kind):
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    again = round_trip(weight, kind)
    bits = {"f32": 23, "f16": 11, "bf16": 8, "q8_0": 7, "q5_1": 4, "q5_0": 4}.get(kind, 3)
    assert float((again - weight).abs().max()) < 4 * 2.0**-bits
    assert torch.equal(round_trip(again, kind), again) or kind[:1] == "q"


def test_rows_that_cannot_be_split_into_blocks_are_float16():
    weight = torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(round_trip(weight, WeightType.Q4_0), weight.half().float())


def test_variants_that_llama_cpp_computes_otherwise_are_refused(llama, tmp_path):
    experts = tiny_model("qwen3_moe")
    with pytest.raises(NotExportable, match="norm_topk_prob"):
        export_gguf(empty(experts), experts, tmp_path / "model.gguf")
    llama.model.config.rope_parameters = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}
    with pytest.raises(NotExportable, match="scaled"):
        export_gguf(empty(llama), llama, tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_splits_in_an_unknown_way_is_refused(gpt2, tmp_path):
    tokenizer = copy.deepcopy(byte_level_bpe())
    tokenizer.backend_tokenizer.pre_tokenizer = Whitespace()
    lm = LanguageModel(gpt2.model, tokenizer, name="odd")
    with pytest.raises(NotExportable, match=r"no name in llama\.cpp"):
        export_gguf(empty(lm), lm, tmp_path / "model.gguf")


def test_the_package_gguf_is_named_where_it_is_missing(make_patch, llama, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"CG504[\s\S]*corrigenda\[gguf\]"):
        export_gguf_adapter(make_patch(llama, "1.mlp.down"), llama, tmp_path / "adapter.gguf")


def test_patches_that_are_no_adapter_are_refused(make_patch, llama, tmp_path):
    out = tmp_path / "adapter.gguf"
    with pytest.raises(NotExportable, match="empty"):
        export_gguf_adapter(WeightPatch({}, Header(method="m")), llama, out)
    with pytest.raises(NotExportable, match="rank"):
        export_gguf_adapter(make_patch(llama, "1.mlp.down", "dense"), llama, out)
    other = make_patch(tiny_model("llama", seed=1), "1.mlp.down")
    for export in (export_gguf_adapter, export_gguf):
        with pytest.raises(WrongBase):
            export(other, llama, out)
    assert not out.exists()
