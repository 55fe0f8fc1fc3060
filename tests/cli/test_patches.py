"""`diff`, `compose`, `export`, `restore`: patches as files and models made with them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import corrigenda
from corrigenda.exports.restore import PATCH, PRISTINE, RECORD
from corrigenda.facts import Fact
from corrigenda.lm.decoding import greedy
from tests.support.tiny_on_disk import Run, save_tiny


def test_diff_of_one(run: Run, patch_file: Path, fact: Fact) -> None:
    ran = run("diff", patch_file)
    assert ran.code == 0
    assert all(word in ran.out for word in ("rome, 1 facts", fact.prompt, "2.mlp.down", "LowRank"))
    (site,) = run("diff", patch_file, "--json").json["sites"]
    assert site["rank"] == 1
    assert site["norm"] > 0


def test_diff_of_two(run: Run, patch_file: Path, tmp_path: Path) -> None:
    same = run("diff", patch_file, patch_file, "--json")
    assert (same.code, same.json["equal"]) == (0, True)
    (site,) = same.json["sites"]
    assert site["cosine"] == pytest.approx(1, abs=1e-12)
    assert site["norm_difference"] == pytest.approx(0, abs=1e-6 * site["norm_a"])
    halved = tmp_path / "half.safetensors"
    corrigenda.load_patch(patch_file).scale(-0.5).save(halved)
    other = run("diff", patch_file, halved, "--json")
    assert (other.code, other.json["equal"]) == (1, False)
    (site,) = other.json["sites"]
    assert site["cosine"] == pytest.approx(-1, abs=1e-12)
    assert site["norm_difference"] == pytest.approx(1.5 * site["norm_a"])
    assert "The patches differ." in run("diff", patch_file, halved).out


def test_compose_adds_patches(run: Run, patch_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "sum.safetensors"
    same = tmp_path / "same.safetensors"
    corrigenda.load_patch(patch_file).scale(1.0 + 1e-12).save(same)
    ran = run("compose", patch_file, same, "-o", out)
    assert ran.code == 0
    assert "2 facts" in ran.out
    data = run("diff", patch_file, out, "--json").json
    assert data["sites"][0]["norm_b"] == pytest.approx(2 * data["sites"][0]["norm_a"])


def test_merge_refuses_the_same_patch_twice(run: Run, patch_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "sum.safetensors"
    ran = run("compose", patch_file, patch_file, "-o", out)
    assert ran.code == 2
    assert "CG406" in ran.err
    assert not out.exists()


def test_export_to_peft(run: Run, patch_file: Path, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    ran = run("export", patch_file, model, "-o", folder, "--json")
    assert ran.code == 0
    tensors = ["adapter_config.json", "adapter_model.safetensors"]
    assert ran.json["files"] == ["README.md", *tensors, "card.json"]


def test_patch_of_another_model_is_refused(run: Run, patch_file: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", seed=1)
    for form in ("peft", "merged"):
        folder = tmp_path / form
        ran = run("export", patch_file, other, "--to", form, "-o", folder)
        assert (ran.code, ran.err[:5]) == (2, "CG401")
        assert not folder.exists()
    ran = run("ask", other, "The Space Needle is in", "--patch", patch_file)
    assert (ran.code, ran.err[:5]) == (2, "CG401")
    assert run("ask", other, "The Space Needle is in", "--patch", patch_file, "--force").code == 0


def test_merged_model_says_the_target(exported: Path, model: Path, fact: Fact) -> None:
    lm = corrigenda.load(exported)
    assert greedy(lm, [fact.prompt])[0].startswith(f" {fact.target}")
    assert lm.digest() != corrigenda.load(model).digest()
    assert {RECORD, PATCH, PRISTINE} <= {path.name for path in exported.iterdir()}


def test_restore_gives_the_original_bits(
    run: Run, exported: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "restored"
    ran = run("restore", exported, "-o", out, "--json")
    assert ran.code == 0
    assert ran.json["source"] == PRISTINE
    original = load_file(model / "model.safetensors")
    restored = load_file(out / "model.safetensors")
    assert original.keys() == restored.keys()
    assert all(torch.equal(tensor, restored[name]) for name, tensor in original.items())
    assert corrigenda.load(out).digest() == corrigenda.load(model).digest() == ran.json["digest"]


def test_restore_falls_back_on_the_base_model(
    run: Run, exported: Path, model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(exported, tmp_path / "without")
    (folder / PRISTINE).unlink()
    ran = run("restore", folder, "-o", tmp_path / "restored", "--json")
    assert ran.code == 0
    assert ran.json["source"] == str(model)
    assert corrigenda.load(tmp_path / "restored").digest() == ran.json["digest"]


def test_restore_refuses_what_it_cannot_restore(run: Run, exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "tuned")
    record = (folder / RECORD).read_text()
    digest = corrigenda.load_patch(folder / PATCH).header.base_digest
    assert digest is not None
    assert digest in record
    (folder / RECORD).write_text(record.replace(digest, "0" * len(digest)))
    out = tmp_path / "restored"
    ran = run("restore", folder, "-o", out)
    assert (ran.code, ran.err[:5]) == (2, "CG401")
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_restore_overwrites_nothing(run: Run, exported: Path, tmp_path: Path) -> None:
    ran = run("restore", exported, "-o", tmp_path)
    assert (ran.code, ran.err[:5]) == (2, "CG601")


def test_a_truncated_patch_is_refused(run: Run, patch_file: Path, tmp_path: Path) -> None:
    part = tmp_path / "part.safetensors"
    part.write_bytes(patch_file.read_bytes()[:-7])
    ran = run("diff", part)
    assert (ran.code, ran.err[:5]) == (2, "CG402")


def test_a_patch_that_changes_no_weights_is_shown_and_not_shipped_as_weights(run, tmp_path) -> None:
    file = tmp_path / "ice.safetensors"
    edit = run(
        "edit",
        "pocket",
        "The capital of France is",
        "--target",
        "Rome",
        "--method",
        "ice",
        "--set",
        "embedder=states",
        "-o",
        str(file),
    )
    assert "it changes no weights" in edit.out
    shown = run("diff", str(file))
    assert shown.code == 0
    assert "vectors" in shown.out
    assert "CG405" in run("export", str(file), "pocket", "-o", str(tmp_path / "out")).err
