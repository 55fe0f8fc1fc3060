"""Places that cannot be written: one code, the real cause, and nothing left behind."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest

from corrigenda.cli.options import check_folder
from corrigenda.errors import CorruptFile, WriteFailed
from corrigenda.exports.merged import export_merged
from corrigenda.exports.restore import restore_merged, save_originals
from corrigenda.files import (
    check_place,
    explain_failure,
    make_folder,
    temporary_folder,
    write_atomically,
    write_text,
)
from corrigenda.patch import WeightPatch, header_for
from corrigenda.processes import identify_process
from corrigenda.testing.tiny import tiny_model


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let no file grow beyond a size: the closest to a full disk that needs no disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refusal(path: Path) -> WriteFailed:
    """What writing there raises."""
    with pytest.raises(WriteFailed, match="CG601") as caught:
        write_text(path, "x")
    return caught.value


def test_a_disk_that_fills_while_parquet_is_written(tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": list(range(100_000))})
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"old")
    with file_size_limit(10_000), pytest.raises(WriteFailed, match="CG601") as caught:
        write_atomically(path, frame.write_parquet)
    assert "larger than is allowed" in caught.value.message
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["rows.parquet"]
    with pytest.raises(WriteFailed, match="the disk is full") as caught:
        write_atomically(path, lambda _: frame.write_parquet("/dev/full"))
    assert "Free some space" in caught.value.hint


def test_other_errors_of_a_writer_pass_through(tmp_path: Path) -> None:
    def write(part: Path) -> None:
        part.write_text("half")
        raise pl.exceptions.ComputeError("no such column")

    with pytest.raises(pl.exceptions.ComputeError):
        write_atomically(tmp_path / "a", write)

    def refuse(part: Path) -> None:
        raise CorruptFile("not a patch (os error 2)")

    with pytest.raises(CorruptFile):
        write_atomically(tmp_path / "a", refuse)
    assert names(tmp_path) == []


def test_a_missing_folder_is_named_and_no_space_asked_for(tmp_path: Path) -> None:
    error = refusal(tmp_path / "missing" / "a.txt")
    assert f"there is no folder {tmp_path / 'missing'}" in error.message
    assert "Make the folder first" in error.hint
    assert "space" not in error.hint


def test_a_file_where_a_folder_is_wanted_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "a.txt", tmp_path / "file" / "deep" / "a.txt"):
        error = refusal(path)
        assert f"{tmp_path / 'file'} is a file, not a folder" in error.message
    with pytest.raises(WriteFailed, match="is a file, not a folder"):
        make_folder(tmp_path / "file")
    with pytest.raises(WriteFailed, match="is a file, not a folder"):
        make_folder(tmp_path / "file" / "runs")


def test_a_folder_where_a_file_is_wanted_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "is a folder" in refusal(tmp_path / "folder").message


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (errno.EACCES, "may not be written to"),
        (errno.EPERM, "may not be written to"),
        (errno.EROFS, "read-only"),
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.ENAMETOOLONG, "name is too long"),
        (errno.EIO, "input/output error"),
    ],
)
def test_every_cause_is_named(tmp_path: Path, code: int, cause: str) -> None:
    for error in (OSError(code, os.strerror(code)), Exception(f"IO error (os error {code})")):
        found = explain_failure(tmp_path / "a", error)
        assert found is not None
        assert cause in found.message
        assert ("space" in found.hint) == (code in (errno.ENOSPC, errno.EDQUOT))
    assert explain_failure(tmp_path, ValueError("no")) is None


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    assert "name is too long" in refusal(tmp_path / ("a" * 300)).message


def test_commands_refuse_a_place_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteFailed, match="is a file"):
        check_folder(tmp_path / "file" / "a.safetensors")
    with pytest.raises(WriteFailed, match="is a folder"):
        check_place(tmp_path)
    with pytest.raises(WriteFailed, match="is a file"):
        check_place(tmp_path / "file", folder=True)
    check_place(tmp_path / "new")
    check_place(tmp_path / "file")
    check_place(tmp_path, folder=True)
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="a read-only place of Linux")
def test_a_place_that_is_read_only() -> None:
    with pytest.raises(WriteFailed, match=r"read-only|may not be written"):
        write_text("/sys/kernel/a.txt", "x")
    with pytest.raises(WriteFailed, match=r"read-only|may not be written"):
        make_folder("/sys/kernel/corrigenda")


def test_a_full_disk_during_a_merged_export_leaves_nothing(tmp_path: Path) -> None:
    lm = tiny_model("llama")
    patch = WeightPatch({}, header_for(lm, method="none", config={}, facts=[]))
    with file_size_limit(10_000), pytest.raises(WriteFailed, match="larger than is allowed"):
        export_merged(patch, lm, tmp_path / "merged")
    assert names(tmp_path / "merged") == []


KILLED = """
import sys, time
from pathlib import Path
from corrigenda.files import temporary_folder
with temporary_folder(Path(sys.argv[1])) as part:
    (part / "model.safetensors").write_bytes(bytes(100_000))
    print("ready", flush=True)
    time.sleep(600)
"""


def kill_while_writing(target: Path) -> Path:
    """Return what a process that is killed in the middle leaves."""
    command = [sys.executable, "-c", KILLED, str(target)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    (left,) = target.parent.glob(f".{target.name}.tmp-*")
    with temporary_folder(target):
        assert left.is_dir(), "the other process still runs"
    child.kill()
    child.wait()
    child.stdout.close()
    assert left.is_dir()
    return left


def test_the_next_export_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    folder.mkdir()
    left = kill_while_writing(folder / "model")
    lm = tiny_model("llama")
    patch = WeightPatch({}, header_for(lm, method="none", config={}, facts=[]))
    export_merged(patch, lm, folder)
    assert not left.exists()
    assert "model.safetensors" in names(folder)
    assert not [name for name in names(folder) if name.startswith(".")]


def test_the_next_restore_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    lm = tiny_model("llama")
    patch = WeightPatch({}, header_for(lm, method="none", config={}, facts=[]))
    export_merged(patch, lm, tmp_path / "merged")
    save_originals(tmp_path / "merged", patch, lm)
    left = kill_while_writing(tmp_path / "restored")
    restored = restore_merged(tmp_path / "merged", tmp_path / "restored")
    assert restored.digest == lm.digest()
    assert not left.exists()
    assert names(tmp_path) == ["merged", "restored"]


def test_a_process_number_that_comes_again_breaks_no_write(tmp_path: Path) -> None:
    """Files of a dead process with our number are removed, and never in the way of a new one."""
    own = identify_process()
    for number in range(2000):
        (tmp_path / f".a.tmp-{own.machine}-{own.pid}-{max(own.begun - 1, 1)}-{number}").touch()
        (tmp_path / f".a.tmp-{own.pid}-{number}").touch()
    write_text(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "x"
    left = [name for name in names(tmp_path) if own.machine in name]
    assert left == []


def test_files_of_other_machines_stay_while_they_may_be_written(tmp_path: Path) -> None:
    """Another container's process number says nothing here; a day without a change does."""
    fresh = tmp_path / ".a.tmp-0123456789-4194303-77-0"
    old = tmp_path / ".a.tmp-0123456789-4194303-77-1"
    folder = tmp_path / ".a.tmp-0123456789-4194303-77-2"
    folder.mkdir()
    (folder / "part").touch()
    for path in (fresh, old):
        path.touch()
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    os.utime(folder, (long_ago, long_ago))
    write_text(tmp_path / "a", "x")
    assert fresh.exists()
    assert not old.exists()
    assert folder.exists(), "a file inside was written just now"
    os.utime(folder / "part", (long_ago, long_ago))
    write_text(tmp_path / "a", "y")
    assert not folder.exists()
