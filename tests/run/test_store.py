"""Runs on disk: whole parts or none, found by their ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from corrigenda.cases import Protocol
from corrigenda.errors import CorruptFile, MissingData
from corrigenda.rows import Measurement, Row
from corrigenda.run import store
from corrigenda.run.store import Manifest, RunPart, Store
from tests.run.conftest import make


def part(number: int) -> RunPart:
    row = Row(case=str(number), role="reliability", protocol=Protocol.GREEDY, answer=" Paris")
    return RunPart(
        f"{number:03d}", [row], [Measurement(case=str(number), name="cost/edit_seconds")]
    )


def begun(folder: Path, name: str = "abc") -> Store:
    started = Store(folder / name)
    started.begin(Manifest(run=name, spec=make().model_dump(mode="json")))
    return started


def test_parts_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    run = begun(tmp_path)
    for number in (2, 0, 1, 1):
        run.add(part(number))
    unfinished = store.load("abc", tmp_path)
    assert [row.case for row in unfinished.rows] == ["0", "1", "2"]
    assert not unfinished.manifest.finished
    run.finish()
    finished = store.load(tmp_path / "abc")
    assert finished.rows == unfinished.rows
    assert finished.measurements == unfinished.measurements
    assert finished.spec == make()
    assert run.finished
    assert not (tmp_path / "abc" / "parts").exists()


def test_a_part_without_rows_does_not_count(tmp_path: Path) -> None:
    run = begun(tmp_path)
    run.add(part(0))
    run.add(part(1))
    (tmp_path / "abc" / "parts" / "001.rows.parquet").unlink()
    assert run.list_parts() == {"000"}
    assert len(store.load("abc", tmp_path).measurements) == 1
    run.add(part(1))
    assert [row.case for row in store.load("abc", tmp_path).rows] == ["0", "1"]


def test_a_run_that_goes_on_keeps_its_manifest(tmp_path: Path) -> None:
    started = begun(tmp_path)
    before = store.read_manifest(started.folder)
    started.begin(before.model_copy(update={"started": "", "cases": 7}))
    assert store.read_manifest(started.folder) == before


def test_runs_are_found_by_the_beginning_of_their_ids(tmp_path: Path) -> None:
    for name in ("abc", "abx", "x"):
        begun(tmp_path, name)
    assert store.find_run("x", tmp_path) == tmp_path / "x"
    assert sorted(store.list_ids(tmp_path)) == ["abc", "abx", "x"]
    with pytest.raises(MissingData, match='several runs begin with "ab": abc, abx'):
        store.load("ab", tmp_path)
    with pytest.raises(MissingData, match='no run "q"'):
        store.load("q", tmp_path)
    with pytest.raises(MissingData, match="corrigenda evaluate"):
        store.load("q", tmp_path / "nowhere")


def test_damage_is_told(tmp_path: Path) -> None:
    run = begun(tmp_path)
    run.add(part(0))
    run.finish()
    (run.folder / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorruptFile, match=r"rows\.parquet is damaged"):
        store.load(run.folder)
    (run.folder / "run.json").write_text("{}")
    with pytest.raises(CorruptFile, match="no manifest"):
        store.load(run.folder)
