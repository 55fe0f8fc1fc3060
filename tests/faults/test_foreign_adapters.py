"""A model that carries an adapter of peft is not written as a merged checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

import corrigenda as cg
from corrigenda.errors import NotExportable
from corrigenda.exports.merged import export_merged
from corrigenda.facts import Fact
from corrigenda.testing.tiny import tiny_model

peft = pytest.importorskip("peft", reason="adapters are made by peft")

FACT = Fact(prompt="The Space Needle is in", subject="The Space Needle", target="Rome")


def test_a_merged_export_of_a_model_with_a_loaded_adapter_is_refused(tmp_path: Path) -> None:
    lm = tiny_model("llama")
    lm.model.add_adapter(peft.LoraConfig(r=2, target_modules=["down_proj"]))
    patch = cg.edit(lm, FACT, cg.FtM(layer=1, epochs=2), progress=False)
    with pytest.raises(NotExportable, match=r"CG405(.|\n)*adapters in 4 modules(.|\n)*merge_and"):
        export_merged(patch, lm, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_after_merging_the_adapter_the_export_is_whole(tmp_path: Path) -> None:
    lm = tiny_model("llama")
    adapted = peft.get_peft_model(lm.model, peft.LoraConfig(r=2, target_modules=["down_proj"]))
    merged = cg.wrap(adapted.merge_and_unload(), lm.tokenizer)
    patch = cg.edit(merged, FACT, cg.FtM(layer=1, epochs=2), progress=False)
    export_merged(patch, merged, tmp_path / "merged")
    with patch.apply(merged):
        wanted = merged.digest()
    assert cg.load(tmp_path / "merged").digest() == wanted
