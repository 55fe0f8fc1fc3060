"""The cache of fitted states and texts: damaged or unusable, it costs time and one warning."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

import corrigenda as cg
from corrigenda import files
from corrigenda.statistics import Corpus, cache
from corrigenda.testing.tiny import tiny_model
from tests.support.tiny_on_disk import command

TEXTS = ["Arles is a town in France, near the sea.", "Bergen is a port of Norway."] * 60
OPTIONS = {"layers": [1]}


@pytest.fixture(autouse=True)
def _no_warning_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_unusable", set())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fit() -> cg.State:
    return cg.fit(tiny_model("llama"), "memit", corpus=Corpus(TEXTS), **OPTIONS)


def same(one: cg.State, other: cg.State) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        bool((tensor == other.tensors[name]).all()) for name, tensor in one.tensors.items()
    )


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut":
        del content[len(content) // 2 :]
    elif how == "flip":
        content[-5] ^= 1
    elif how == "empty":
        content.clear()
    else:
        content[:] = b"\xff\xfe" * 40
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["cut", "flip", "empty", "binary"])
def test_a_damaged_state_is_told_and_fitted_again(folder: Path, how: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fine = fit()
    (file,) = folder.rglob("*.safetensors")
    damage(file, how)
    with pytest.warns(UserWarning, match="computed again") as told:
        assert same(fit(), fine)
    assert len([one for one in told if "computed again" in str(one.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(fit(), fine)


@pytest.mark.parametrize("how", ["cut", "flip", "empty", "binary"])
def test_damaged_texts_are_told_and_none(folder: Path, how: str) -> None:
    cache.write_texts("own", TEXTS)
    assert cache.read_texts("own") == TEXTS
    damage(cache.locate("own", "texts"), how)
    with pytest.warns(UserWarning, match="written again"):
        assert cache.read_texts("own") is None
    cache.write_texts("own", TEXTS)
    assert cache.read_texts("own") == TEXTS


def test_a_cache_that_is_no_folder_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    monkeypatch.setenv("CORRIGENDA_CACHE", str(file))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        first, second = fit(), fit()
        cache.write_texts("own", TEXTS)
        assert cache.read_texts("own") is None
    assert same(first, second)
    assert any("is a file, not a folder" in str(one.message) for one in told)
    assert len([one for one in told if "cache" in str(one.message)]) == 1
    ran = command("doctor", "--json")
    (found,) = (one for one in ran.json["findings"] if one["name"] == "cache")
    assert not found["ok"]
    assert "CORRIGENDA_CACHE" in found["advice"]
