"""A cache that is full, read-only or damaged costs time, and nothing else."""

from __future__ import annotations

import os
import random
import warnings
from pathlib import Path

import pytest

from corrigenda import files
from corrigenda.run import runner
from corrigenda.run.spec import RunSpec
from corrigenda.run.store import Recorded
from tests.run.conftest import make
from tests.support.tiny_on_disk import save_tiny

STREAM = {"name": "ultraedit", "options": {"layers": [0, 1], "learning_rate": 0.02}}


@pytest.fixture(autouse=True)
def _no_warning_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_unusable", set())


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    """A model on disk, so that its digest is cached, and a method that fits second moments."""
    texts = {"texts": ["Rome is a city in Italy."]}
    return make(model=str(save_tiny(tmp_path / "model")), editor=STREAM, health=texts)


def run(spec: RunSpec, folder: Path) -> Recorded:
    return runner.run(spec, folder=folder)


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def test_a_cache_that_is_full_is_told_once(
    spec: RunSpec, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = run(spec, tmp_path / "fine")
    assert {path.relative_to(cache).parts[0] for path in entries(cache)} >= {"before", "digests"}
    full = tmp_path / "full"
    monkeypatch.setenv("CORRIGENDA_CACHE", str(full))
    replace = os.replace

    def fill(source: Path, target: str) -> None:
        if str(full) in str(target):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", fill)
    with pytest.warns(UserWarning, match=r"cache .*full cannot be written.*No space left") as told:
        recorded = run(spec, tmp_path / "runs")
    assert len([one for one in told if "cannot be written" in str(one.message)]) == 1
    assert recorded.rows == fine.rows
    assert entries(full) == []


def test_a_cache_that_is_no_folder_is_told_once(
    spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = run(spec, tmp_path / "fine")
    file = tmp_path / "file"
    file.write_text("no folder")
    monkeypatch.setenv("CORRIGENDA_CACHE", str(file))
    with pytest.warns(UserWarning, match=r"cannot be written") as told:
        recorded = run(spec, tmp_path / "runs")
    assert len([one for one in told if "cannot be written" in str(one.message)]) == 1
    assert recorded.rows == fine.rows


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_cache_that_is_read_only_is_told(
    spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "read_only"
    folder.mkdir(mode=0o500)
    monkeypatch.setenv("CORRIGENDA_CACHE", str(folder))
    with pytest.warns(UserWarning, match="cannot be written"):
        assert run(spec, tmp_path / "runs").manifest.finished


@pytest.mark.parametrize("how", ["cut", "flip", "empty", "binary"])
def test_a_damaged_cache_is_told_and_written_again(
    how: str, spec: RunSpec, cache: Path, tmp_path: Path
) -> None:
    fine = run(spec, tmp_path / "fine")
    draw = random.Random(how)
    for path in entries(cache):
        content = bytearray(path.read_bytes())
        if how == "cut":
            del content[len(content) // 2 :]
        elif how == "flip":
            # Past the beginning, so that a digest is a digest still.
            content[draw.randrange(8, len(content))] ^= 1
        path.write_bytes({"empty": b"", "binary": b"\xff\xfe" * 40}.get(how, bytes(content)))
    with pytest.warns(UserWarning, match="written again"):
        damaged = run(spec, tmp_path / "damaged")
    assert damaged.rows == fine.rows
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(spec, tmp_path / "again").rows == fine.rows
