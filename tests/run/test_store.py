"""Runs on disk: whole parts or none, found by their ids."""

from __future__ import annotations

import json
import random
from pathlib import Path

import polars
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
    run.finish(sorted(run.list_parts()))
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
    run.finish(sorted(run.list_parts()))
    (run.folder / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorruptFile, match=r"rows\.parquet is damaged"):
        store.load(run.folder)
    (run.folder / "run.json").write_text("{}")
    with pytest.raises(CorruptFile, match="no manifest"):
        store.load(run.folder)


def damage(path: Path, how: str, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content))
    if how == "cut":
        del content[place:]
    elif how == "flip":
        content[place] ^= 1 << draw.randrange(8)
    elif how == "zero":
        end = min(len(content), place + 16)
        # A place that is zero already is not changed by this.
        content[place:end] = bytes(255 - one for one in content[place:end])
    else:
        content += b"\n"
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("file", ["rows.parquet", "measurements.parquet", "run.json"])
@pytest.mark.parametrize("how", ["cut", "flip", "zero", "longer"])
def test_a_changed_file_is_refused(file: str, how: str, tmp_path: Path) -> None:
    run = begun(tmp_path)
    for number in range(3):
        run.add(part(number))
    run.finish(sorted(run.list_parts()))
    path = run.folder / file
    fine, whole = path.read_bytes(), store.load(run.folder)
    draw = random.Random(f"{file}{how}")
    for _ in range(10):
        path.write_bytes(fine)
        damage(path, how, draw)
        if file == "run.json" and json_of(path) == json_of(fine):
            continue
        with pytest.raises(CorruptFile, match=r"damaged|no manifest"):
            store.load(run.folder)
    path.write_bytes(fine)
    assert store.load(run.folder) == whole


def json_of(source: Path | bytes) -> object:
    """The value of a JSON file; white space in it may change."""
    try:
        return json.loads(source if isinstance(source, bytes) else source.read_bytes())
    except ValueError:
        return None


def test_finishing_needs_every_planned_part(tmp_path: Path) -> None:
    run = begun(tmp_path)
    run.add(part(0))
    run.add(part(7))
    with pytest.raises(CorruptFile, match=r"1 of 2 parts of the run are missing: 001"):
        run.finish(["000", "001"])
    assert not run.finished
    run.add(part(1))
    run.finish(["000", "001"])
    # A part that was not planned is not of this run.
    assert [row.case for row in store.load(run.folder).rows] == ["0", "1"]


def test_a_damaged_part_is_told_and_done_again(tmp_path: Path) -> None:
    run = begun(tmp_path)
    for number in range(3):
        run.add(part(number))
    path = run.folder / "parts" / "001.measurements.parquet"
    damage(path, "flip", random.Random(1))
    with pytest.raises(CorruptFile, match=r"001\.measurements\.parquet is damaged"):
        store.load(run.folder)
    with pytest.warns(UserWarning, match=r"001\.measurements\.parquet is damaged"):
        run.drop_damaged()
    assert run.list_parts() == {"000", "002"}


def test_a_damaged_run_does_not_hide_the_others(tmp_path: Path) -> None:
    for name in ("abc", "xyz"):
        begun(tmp_path, name)
    (tmp_path / "abc" / "run.json").write_text("{}")
    assert store.find_run("x", tmp_path).name == "xyz"
    with pytest.raises(CorruptFile, match="no manifest"):
        store.load("a", tmp_path)


def test_other_programs_read_the_rows(tmp_path: Path) -> None:
    run = begun(tmp_path)
    run.add(part(0))
    run.finish(["000"])
    frame = polars.read_parquet(run.folder / "rows.parquet")
    assert frame["answer"].to_list() == [" Paris"]
