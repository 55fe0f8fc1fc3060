"""`methods`, `models`, `doctor` and `pocket train`."""

from __future__ import annotations

from pathlib import Path

import pytest

import corrigenda
from corrigenda.lm.families import FAMILIES
from corrigenda.methods.presets import build_editor
from corrigenda.methods.registry import METHODS
from corrigenda.testing.tiny import tiny_model
from tests.support.tiny_on_disk import Run


def test_methods_table_holds_every_card(run: Run) -> None:
    ran = run("methods", "--json")
    assert ran.code == 0
    rows = {row["name"]: row for row in ran.json["methods"]}
    assert set(rows) == set(METHODS.names())
    assert rows["rome"]["batch"] is False
    assert rows["memit"]["batch"] is True
    shown = run("methods").out
    assert all(name in shown for name in rows)


def test_methods_fit_eighty_columns_one_line_each(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for arguments in ((), ("--model", model)):
        lines = run("methods", *arguments).out.splitlines()
        assert max(map(len, lines)) <= 80
        assert [line.split()[0] for line in lines[1:] if line][: len(METHODS.names())] == list(
            METHODS.names()
        )
    listed = run("methods").out
    assert "..." not in listed
    assert "\u2026" not in listed


def test_methods_shows_the_card_of_one(run: Run) -> None:
    ran = run("methods", "ROME")
    assert ran.code == 0
    assert "one fact whose prompt names its subject" in ran.out
    assert "Pitfalls" in ran.out
    data = run("methods", "knowledge_editor", "--json").json
    assert data["method"]["name"] == "knowledge-editor"
    assert data["card"] == METHODS.card_text("knowledge-editor")
    ran = run("methods", "romme")
    assert (ran.code, ran.err[:5]) == (2, "CG501")
    assert 'Did you mean "rome"?' in ran.err
    ran = run("methods", "rome", "--model", "pocket")
    assert (ran.code, ran.err[:5]) == (2, "CG502")


@pytest.mark.parametrize("name", METHODS.names())
def test_table_says_what_the_object_says(name: str) -> None:
    (row,) = (row for row in corrigenda.list_methods() if row.name == name)
    gives = build_editor(name).supports
    assert (row.batch, row.sequential) == (gives.batch, gives.sequential)


def test_methods_count_parameters_of_a_model(run: Run, model: Path) -> None:
    rows = {row["name"]: row for row in run("methods", "--model", model, "--json").json["methods"]}
    lm = corrigenda.load(model)
    assert rows["rome"]["parameters"] == lm.d_model * lm.d_inner
    assert rows["calinet"]["parameters"] > 0
    told = run("methods", "--model", model).out
    for row in rows.values():
        assert row["parameters"] is None or row["parameters"] > 0
        assert row["parameters"] is not None or row["formula"].split()[0] in told


def test_a_mixture_of_experts_is_listed_too() -> None:
    lm = tiny_model("qwen3_moe")
    rows = {row.name: row.parameters for row in corrigenda.list_methods(lm)}
    assert set(rows) == set(METHODS.names())
    assert rows["rome"] is None
    assert rows["truthx"]


def test_models_lists_families_and_shipped_models(run: Run) -> None:
    data = run("models", "--json").json
    assert [item["name"] for item in data["shipped"]] == ["pocket", "pocket-gpt2"]
    assert [item["name"] for item in data["families"]] == [family.name for family in FAMILIES]
    assert [item["name"] for item in data["installable"]] == ["smollm2", "gemma3"]
    shown = run("models").out
    assert all(name in shown for name in ("pocket-gpt2", "smollm2", "Apache-2.0", "Gemma terms"))


def test_doctor_reports_and_tells_findings(run: Run, cache: Path) -> None:
    cache.mkdir()
    (cache / "something").write_bytes(b"x" * 2048)
    ran = run("doctor", "--json")
    findings = {item["name"]: item for item in ran.json["findings"]}
    assert {"corrigenda", "torch", "threads", "devices", "cache", "free disk space"} <= set(
        findings
    )
    assert findings["cache"]["value"] == f"{cache} (2 KiB)"
    assert ran.code == (0 if all(item["ok"] for item in findings.values()) else 1)
    for item in findings.values():
        assert item["ok"] or item["advice"]


def test_doctor_finds_an_unusable_number_of_threads(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 4096)
    ran = run("doctor")
    assert ran.code == 1
    assert "set OMP_NUM_THREADS" in ran.out


def test_pocket_train_refuses_an_unknown_option(run: Run, tmp_path: Path) -> None:
    ran = run("pocket", "train", "-o", tmp_path / "m", "--steps", 1, "--set", "masked_shar=1")
    assert (ran.code, ran.err[:5]) == (2, "CG502")
    assert 'Did you mean "masked_share"?' in ran.err
    ran = run("pocket", "train", "-o", tmp_path / "m", "--steps", 1, "--set", "row=long")
    assert (ran.code, ran.err[:5]) == (2, "CG502")
    assert "row: " in ran.err
    ran = run("pocket", "train", "-o", tmp_path / "m")
    assert (ran.code, ran.err[:5]) == (2, "CG502")
