"""A stream in a folder: killed at any moment it goes on to the same bits; what does not fit."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import corrigenda as cg
from corrigenda.errors import BadConfig, CorruptFile, NewerFormat, WrongBase
from corrigenda.streaming.edit_stream import EditStream
from corrigenda.streaming.folder import load_stream, save_removal
from corrigenda.testing.tiny import tiny_model
from tests.run.test_interrupts import interrupted_after
from tests.support.streams import EDITORS, facts, lm, same_bits, state_of

ROOT = Path(__file__).parents[2]
NAMES = ("memit in sequence", "ultraedit", "grace")


def run(name: str, folder: Path | None, count: int = 8, **options: object) -> EditStream:
    settings = {"batch_size": 2, "state": state_of(name), "progress": False, **options}
    return cg.stream(lm(), EDITORS[name], facts(count), folder=folder, **settings)


@pytest.mark.parametrize("name", ["memit in sequence", "grace"])
def test_a_killed_process_is_gone_on_from(name: str, tmp_path: Path) -> None:
    """SIGKILL at random moments, some of them after the end of the work."""
    draw, kills = random.Random(name), 0
    command = [sys.executable, "-m", "tests.support.stream_process", name, str(tmp_path / "s")]
    for _ in range(3):
        process = subprocess.Popen([*command, "8", "1"], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        time.sleep(draw.uniform(0.0, 0.3))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
    assert kills > 0
    edits = run(name, tmp_path / "s", batch_size=1)
    whole = run(name, None, batch_size=1)
    assert len(edits.batches) == 8
    assert same_bits(edits, whole)
    assert edits.statuses == whole.statuses
    assert same_bits(load_stream(tmp_path / "s"), whole)


@pytest.mark.parametrize("name", NAMES)
def test_interrupts_lose_no_batch_that_was_done(name: str, tmp_path: Path) -> None:
    begin = time.perf_counter()
    whole, digest = run(name, None), lm().digest()
    seconds = time.perf_counter() - begin
    draw = random.Random(0)
    for _ in range(8):
        try:
            with interrupted_after(draw.uniform(0.01, 0.5) * seconds):
                run(name, tmp_path / "s", checkpoint_every=3)
        except KeyboardInterrupt:
            assert not lm().patches
    edits = run(name, tmp_path / "s", checkpoint_every=3)
    assert lm().digest() == digest
    assert same_bits(edits, whole)


def test_the_same_call_does_nothing_more_and_further_facts_are_added(tmp_path: Path) -> None:
    first = run("rlsedit", tmp_path)
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert same_bits(run("rlsedit", tmp_path), first)
    assert {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == before
    longer = run("rlsedit", tmp_path, count=10)
    assert len(longer) == 10
    assert same_bits(longer, run("rlsedit", None, count=10))
    assert sorted(file.name for file in tmp_path.iterdir() if file.name.startswith("batch")) == [
        f"batch-{number:06d}.safetensors" for number in range(5)
    ]


def test_what_is_taken_out_stays_out_in_the_folder(tmp_path: Path) -> None:
    edits = run("memit", tmp_path)
    fewer = edits.without([2, 5], how="downdate")
    save_removal(fewer, tmp_path)
    again = run("memit", tmp_path, count=10)
    assert again.gone == {2, 5}
    assert again.statuses[2] == "taken out"
    assert again.error is None
    assert same_bits(load_stream(tmp_path), again)


def test_a_check_that_fails_takes_out_what_came_since_the_last(tmp_path: Path) -> None:
    seen = []

    def check(edits: EditStream) -> bool:
        seen.append((len(edits.batches), len(lm().patches)))
        return len(seen) != 2

    edits = run("memit", tmp_path, check=check, check_every=2, count=9)
    assert seen == [(2, 1), (4, 1), (5, 1)]
    assert edits.gone == {4, 5, 6, 7}
    assert same_bits(edits, run("memit", None, count=9).without(batches=[2, 3])) is False
    assert same_bits(edits, edits.recomputed())
    # Nothing is checked twice.
    run("memit", tmp_path, check=check, check_every=2, count=9)
    assert len(seen) == 3


def test_what_a_check_raises_ends_the_stream_and_keeps_it(tmp_path: Path) -> None:
    def check(edits: EditStream) -> None:
        if len(edits.batches) == 3:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        run("memit", tmp_path, check=check, checkpoint_every=4)
    assert not lm().patches
    assert len(load_stream(tmp_path).batches) == 3
    assert same_bits(run("memit", tmp_path), run("memit", None))


@pytest.mark.parametrize(
    ("options", "named"),
    [({"batch_size": 3}, "batch_size"), ({"search_on": "base"}, "search_on")],
)
def test_another_setting_is_refused(tmp_path: Path, options: dict[str, object], named: str) -> None:
    run("memit", tmp_path, count=2)
    with pytest.raises(BadConfig, match=f"begun with other settings: {named}"):
        run("memit", tmp_path, **options)
    with pytest.raises(BadConfig, match="begun with other settings: method"):
        cg.stream(lm(), EDITORS["emmet"], facts(2), batch_size=2, folder=tmp_path)


def test_other_facts_and_other_models_are_refused(tmp_path: Path) -> None:
    run("memit", tmp_path, count=4)
    with pytest.raises(BadConfig, match="fact 0 of the stream"):
        cg.stream(lm(), EDITORS["memit"], facts(6)[1:], batch_size=2, folder=tmp_path)
    with pytest.raises(BadConfig, match="given is nothing"):
        cg.stream(lm(), EDITORS["memit"], facts(2), batch_size=2, folder=tmp_path)
    with pytest.raises(WrongBase, match="was begun on"):
        cg.stream(
            tiny_model("llama", seed=1), EDITORS["memit"], facts(4), batch_size=2, folder=tmp_path
        )


def test_damaged_files_are_named(tmp_path: Path) -> None:
    run("memit", tmp_path, count=4)
    file = tmp_path / "batch-000001.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-20] + bytes(20))
    with pytest.raises(CorruptFile, match="batch-000001"):
        run("memit", tmp_path)
    file.unlink()
    with pytest.raises(CorruptFile, match="batch-000001"):
        load_stream(tmp_path)
    file.write_bytes((tmp_path / "batch-000000.safetensors").read_bytes())
    with pytest.raises(CorruptFile, match="begins at fact 0, not 2"):
        load_stream(tmp_path)
    file.write_bytes((tmp_path / "state.safetensors").read_bytes())
    with pytest.raises(CorruptFile, match="no batch of a stream"):
        load_stream(tmp_path)
    file.write_bytes(whole)
    listed = json.loads((tmp_path / "stream.json").read_text("utf-8"))
    (tmp_path / "stream.json").write_text(json.dumps({**listed, "format": 99}), "utf-8")
    with pytest.raises(NewerFormat, match="format version 99"):
        load_stream(tmp_path)
    (tmp_path / "stream.json").write_text("{", "utf-8")
    with pytest.raises(CorruptFile, match="cannot be used"):
        run("memit", tmp_path)
    with pytest.raises(CorruptFile, match=r"no stream\.json"):
        load_stream(tmp_path / "nothing")
