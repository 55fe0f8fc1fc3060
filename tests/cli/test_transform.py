"""`transform`, and `edit --transform`."""

from __future__ import annotations

from pathlib import Path

import pytest

import corrigenda
from corrigenda.facts import Fact
from tests.support.tiny_on_disk import QUICK, Run, save_tiny


def test_transform_writes_a_new_patch_and_says_what_was_done(
    run: Run, patch_file: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new.safetensors"
    before = patch_file.read_bytes()
    ran = run(
        *("transform", patch_file, model, "-o", out),
        *("--transform", "clip-norm:absolute=0.01", "--transform", "rect:keep=0.25"),
    )
    assert ran.code == 0, ran.err
    assert patch_file.read_bytes() == before
    assert "rome > clip-norm > rect, 1 facts" in ran.out
    assert "norm before" in ran.out
    assert "clip-norm: what the patch writes at the keys of 1 of 1 facts" in ran.err
    patch = corrigenda.load_patch(out)
    assert [entry["name"] for entry in patch.header.notes["transforms"]] == ["clip-norm", "rect"]
    described = run("diff", out, "--json").json
    assert described["sites"][0]["kind"] == "Dense"
    assert described["a"]["method"] == "rome > clip-norm > rect"


def test_transform_json(run: Run, patch_file: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.safetensors"
    data = run("transform", patch_file, model, "--transform", "prune", "-o", out, "--json").json
    assert data["method"] == "rome > prune"
    assert data["file"] == str(out)
    (site,) = data["sites"]
    assert site["cosine"] == pytest.approx(1)
    assert data["transforms"][0]["report"]["2.mlp.down"]["restrained"] in (0, 1)


def test_bad_transforms_and_other_models_are_refused(
    run: Run, patch_file: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new.safetensors"
    for arguments, code in (
        ((model, "--transform", "rectt"), "CG502"),
        ((model, "--transform", "rect:keep=2"), "CG502"),
        ((model,), "CG502"),
        ((save_tiny(tmp_path / "other", seed=1), "--transform", "rect"), "CG401"),
    ):
        ran = run("transform", patch_file, *arguments, "-o", out)
        assert (ran.code, ran.err[:5]) == (2, code)
    assert not out.exists()


def test_edit_with_transforms(run: Run, model: Path, fact: Fact, tmp_path: Path) -> None:
    out = tmp_path / "patch.safetensors"
    ran = run(
        *("edit", model, fact.prompt, "-s", fact.subject, "-t", fact.target, "-o", out),
        *("--transform", "rect:keep=0.9", *QUICK),
    )
    assert ran.code in (0, 1), ran.err
    assert corrigenda.load_patch(out).header.method == "rome > rect"
    ran = run("edit", model, fact.prompt, "-t", fact.target, "--transform", "nothing")
    assert (ran.code, ran.err[:5]) == (2, "CG502")
    ran = run("edit", model, fact.prompt, "-t", fact.target, "--set", "transforms=[]")
    assert (ran.code, ran.err[:5]) == (2, "CG502")
