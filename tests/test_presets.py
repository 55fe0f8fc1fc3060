"""Presets by name, by shape and from files: none is taken for another model unnoticed."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

import corrigenda as cg
from corrigenda.catalogue import build_editor, give_presets, shape_of
from corrigenda.errors import BadConfig
from corrigenda.methods import presets
from corrigenda.methods.presets import Preset
from corrigenda.testing.tiny import tiny_model

OPTIONS = {"layer": 1, "clamp": 2.5}


def write(file: Path, *, method: str = "rome", d_model: int = 32) -> Path:
    """Write a preset of a tiny model."""
    shape = shape_of(tiny_model("llama", layers=3))._replace(d_model=d_model)
    lines = [f"{name} = {value!r}".replace("'", '"') for name, value in shape._asdict().items()]
    head = [
        f'source = "a test"\nmethod = "{method}"\n\n[options]\nlayer = 1\nclamp = 2.5\n\n[model]'
    ]
    file.write_text("\n".join([*head, *lines, "\n[evidence]", "facts = 3", ""]))
    return file


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A preset for the model called `small`, next to those of ROME."""
    file = write(tmp_path / "small.toml")
    own = presets.presets("rome")
    monkeypatch.setattr(presets, "presets", lambda _: (*own, presets.read_preset(file)))
    return file


def test_a_model_of_another_name_takes_the_preset_of_its_shape_with_a_warning(
    shipped: Path,
) -> None:
    lm = tiny_model("llama", layers=3)
    with pytest.warns(UserWarning, match=r"preset small is taken.*same shape"):
        editor = build_editor(lm, "rome")
    assert editor.model_dump(include=set(OPTIONS)) == OPTIONS


def test_a_model_of_the_name_needs_no_warning_and_one_of_another_shape_does_not_take_it(
    shipped: Path,
) -> None:
    lm = tiny_model("llama", layers=3)
    lm.name = "folder/small"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build_editor(lm, "rome").model_dump(include=set(OPTIONS)) == OPTIONS
    other = tiny_model("llama", layers=2)
    other.name = "small"
    with pytest.warns(UserWarning, match="small is not taken"):
        editor = build_editor(other, "rome")
    assert editor == cg.Rome()


def test_a_file_is_taken_for_what_it_is(tmp_path: Path) -> None:
    lm = tiny_model("llama", layers=3)
    file = write(tmp_path / "own.toml")
    assert build_editor(lm, "rome", preset=str(file), clamp=3.0) == cg.Rome(layer=1, clamp=3.0)
    with pytest.raises(BadConfig, match=r"(?s)one of rome, not of memit.*--method rome"):
        build_editor(lm, "memit", preset=str(file))
    with pytest.raises(BadConfig, match="cannot be read"):
        build_editor(lm, "rome", preset=str(tmp_path / "missing.toml"))
    wide = write(tmp_path / "wide.toml", d_model=4096)
    with pytest.warns(UserWarning, match="another shape"):
        build_editor(lm, "rome", preset=str(wide))


def test_given_presets_come_first_for_one_model_only(tmp_path: Path) -> None:
    lm = tiny_model("llama", layers=3)
    give_presets(lm, [write(tmp_path / "own.toml")])
    assert build_editor(lm, "rome") == cg.Rome(layer=1, clamp=2.5)
    assert build_editor(lm, "ft-l").model_dump()["layer"] is None
    assert build_editor(tiny_model("llama", layers=3), "rome") == cg.Rome()
    again = cg.wrap(lm.model, lm.tokenizer)
    assert build_editor(again, "rome") == cg.Rome(layer=1, clamp=2.5)
    with pytest.raises(BadConfig, match="does not say of which method"):
        give_presets(lm, [Preset("m", OPTIONS, "a test")])


def test_load_takes_files(tmp_path: Path) -> None:
    file = write(tmp_path / "own.toml")
    with pytest.warns(UserWarning, match="another shape"):
        editor = build_editor(cg.load("pocket", presets=[file]), "rome")
    assert editor == cg.Rome(layer=1, clamp=2.5)
