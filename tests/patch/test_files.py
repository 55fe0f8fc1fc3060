"""Writing files: whole or not at all, whatever goes wrong."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from corrigenda.errors import WriteFailed
from corrigenda.files import write_atomically, write_text
from corrigenda.processes import identify_process


def names(folder):
    return sorted(entry.name for entry in Path(folder).iterdir())


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "a.txt"
    assert write_text(path, "one\n") == path
    write_text(path, "two \u00e9\r\n")
    assert path.read_bytes() == "two \u00e9\r\n".encode()
    assert names(tmp_path) == ["a.txt"]


def test_the_old_file_is_readable_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def writer(part):
        part.write_text("new, half")
        assert path.read_text() == "old"
        part.write_text("new")

    write_atomically(path, writer)
    assert path.read_text() == "new"


def test_an_error_of_the_writer_passes_and_leaves_no_trace(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def writer(part):
        part.write_text("half")
        raise KeyError("not about files")

    with pytest.raises(KeyError):
        write_atomically(path, writer)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_full_disk(tmp_path):
    """The kernel refuses to let the file grow; the process gets the error a full disk gives."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(WriteFailed, match="CG601") as caught:
            write_atomically(path, lambda part: part.write_bytes(bytes(200_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert "Nothing was changed" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("place", ["missing/a.txt", "folder"])
def test_a_place_that_cannot_be_written(tmp_path, place):
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteFailed, match=place):
        write_text(tmp_path / place, "x")
    assert names(tmp_path) == ["folder"]


def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.txt"
    link.symlink_to(tmp_path / "real" / "a.txt")
    write_text(link, "x")
    assert link.is_symlink()
    assert (tmp_path / "real" / "a.txt").read_text() == "x"
    assert names(tmp_path / "real") == ["a.txt"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    before = os.umask(0o022)
    try:
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


def test_what_a_killed_process_leaves_is_removed_by_the_next_write(tmp_path):
    path = tmp_path / "a [1].txt"
    write_text(path, "old")
    code = (
        "import sys, time\n"
        "from corrigenda.files import write_atomically\n"
        "def slow(part):\n"
        "    part.write_text('half')\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "write_atomically(sys.argv[1], slow)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    (left,) = set(names(tmp_path)) - {path.name}
    assert left.startswith(".a [1].txt.tmp-")
    write_text(path, "while the other lives")
    assert left in names(tmp_path)
    child.kill()
    child.wait()
    child.stdout.close()
    assert path.read_text() == "while the other lives"
    write_text(path, "new")
    assert names(tmp_path) == [path.name]
    assert path.read_text() == "new"


def test_leftovers_of_our_own_number_are_removed_but_not_open_ones(tmp_path):
    """Process numbers come again, above all in containers."""
    path = tmp_path / "a.txt"
    own = identify_process()
    stale = tmp_path / f".a.txt.tmp-{own.machine}-{own.pid}-{own.begun - 1}-0"
    stale.write_text("half")
    other = tmp_path / ".a.txt.tmp-notes"
    other.write_text("not ours")

    def outer(part):
        part.write_text("outer")
        write_text(path, "inner")
        assert part.exists()

    write_atomically(path, outer)
    assert path.read_text() == "outer"
    assert names(tmp_path) == [".a.txt.tmp-notes", "a.txt"]


def test_two_writers_never_mix(tmp_path):
    """A reader sees one of the two contents, whole, at any moment."""
    path = tmp_path / "a.txt"
    write_text(path, "a" * 50_000)
    code = (
        "import sys\n"
        "from corrigenda.files import write_text\n"
        "for _ in range(40): write_text(sys.argv[1], sys.argv[2] * 50_000)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), letter]) for letter in "ab"]
    deadline = time.monotonic() + 30
    while any(writer.poll() is None for writer in writers) and time.monotonic() < deadline:
        assert path.read_text() in ("a" * 50_000, "b" * 50_000)
    assert [writer.wait() for writer in writers] == [0, 0]
    assert names(tmp_path) == ["a.txt"]
