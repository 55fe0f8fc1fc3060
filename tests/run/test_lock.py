"""One process at a time works in the folder of a run; locks of dead processes hold up no other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from corrigenda.errors import RunInUse
from corrigenda.lm.model import LanguageModel
from corrigenda.run import lock, runner, store
from corrigenda.run.lock import hold_lock
from corrigenda.testing.tiny import tiny_model
from tests.run.conftest import Do, make

HOLD = """
import sys, time
from pathlib import Path
from corrigenda.run.lock import hold_lock
with hold_lock(Path(sys.argv[1]), lambda: False):
    print("held", flush=True)
    time.sleep(60)
"""


def never() -> bool:
    return False


def hold_elsewhere(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def locks(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("lock.*"))


def change_lock(folder: Path, age: float = 0.0, **changes: object) -> None:
    """Make the only lock look like another process's."""
    (path,) = folder.glob("lock.*")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    os.utime(path, (time.time() - age,) * 2)


def takes(folder: Path, *, within: float = 5.0) -> bool:
    """Whether a thread gets the lock in time."""
    given_up = threading.Event()

    def take() -> bool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with hold_lock(folder, given_up.is_set) as held:
                return held is not None

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(take)
        deadline = time.monotonic() + within
        while not future.done() and time.monotonic() < deadline:
            time.sleep(0.02)
        given_up.set()
        return future.result()


@pytest.fixture(autouse=True)
def _poll_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_POLL_SECONDS", 0.05)


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    with hold_lock(tmp_path, never) as held:
        assert held is not None
        held.check()
        assert locks(tmp_path) == ["lock.000001"]
        assert not takes(tmp_path, within=0.3)
    assert takes(tmp_path)
    # The higher number is there, so that two that saw the same released lock take one lock.
    assert locks(tmp_path) == ["lock.000002"]


def test_nothing_is_locked_where_nothing_is_left_to_do(tmp_path: Path) -> None:
    with hold_lock(tmp_path, lambda: True) as held:
        assert held is None
    assert locks(tmp_path) == []
    done: list[bool] = []
    with hold_lock(tmp_path, lambda: bool(done)):
        done.append(True)
    assert locks(tmp_path) == []


def test_a_process_waits_and_says_for_which(tmp_path: Path) -> None:
    process = hold_elsewhere(tmp_path)
    threading.Timer(0.3, process.terminate).start()
    with (
        pytest.warns(UserWarning, match=f"process {process.pid} on .* waiting"),
        hold_lock(tmp_path, never) as held,
    ):
        assert held is not None
    process.wait()


def test_the_lock_of_a_killed_process_is_stale(tmp_path: Path) -> None:
    process = hold_elsewhere(tmp_path)
    assert not takes(tmp_path, within=0.3)
    process.kill()
    process.wait()
    begin = time.monotonic()
    assert takes(tmp_path)
    assert time.monotonic() - begin < 3, "a dead process is seen without waiting for its heartbeat"


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs POSIX signals")
def test_a_suspended_process_of_this_host_holds_on(tmp_path: Path) -> None:
    process = hold_elsewhere(tmp_path)
    try:
        process.send_signal(signal.SIGSTOP)
        change_lock(tmp_path, age=3600)
        assert not takes(tmp_path, within=0.3)
    finally:
        process.kill()
        process.wait()


def test_another_host_holds_while_its_heart_beats(tmp_path: Path) -> None:
    with hold_lock(tmp_path, never):
        change_lock(tmp_path, host="elsewhere", boot="other", pid=1)
        assert not takes(tmp_path, within=0.3)
        change_lock(tmp_path, age=lock.STALE_SECONDS - 30)
        assert not takes(tmp_path, within=0.3)
        change_lock(tmp_path, age=lock.STALE_SECONDS + 30)
        assert takes(tmp_path)


def test_a_recycled_process_number_is_no_holder(tmp_path: Path) -> None:
    process = hold_elsewhere(tmp_path)
    try:
        if not (tmp_path / "lock.000001").read_text().count('"begun":0'):
            change_lock(tmp_path, begun=1)
            assert takes(tmp_path)
    finally:
        process.kill()
        process.wait()


def test_a_lock_that_was_never_written_becomes_stale(tmp_path: Path) -> None:
    path = tmp_path / "lock.000001"
    path.touch()
    assert not takes(tmp_path, within=0.3)
    os.utime(path, (time.time() - 3600,) * 2)
    assert takes(tmp_path)


def test_a_lock_lost_to_an_interrupt_does_not_keep_its_own_process_out(tmp_path: Path) -> None:
    held = lock._acquire(tmp_path, never)
    assert held is not None
    assert not takes(tmp_path, within=0.3)
    del held
    assert takes(tmp_path)


def test_the_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.05)
    with hold_lock(tmp_path, never):
        path = tmp_path / "lock.000001"
        os.utime(path, (0, 0))
        time.sleep(0.5)
        assert path.stat().st_mtime > time.time() - 60


def test_one_of_many_takes_a_stale_lock(tmp_path: Path) -> None:
    """Never two at once, and each in its turn."""
    (tmp_path / "lock.000007").write_text("released")
    inside, most = [0], [0]

    def work(_: int) -> None:
        with hold_lock(tmp_path, never):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.01)
            inside[0] -= 1

    with warnings.catch_warnings(), ThreadPoolExecutor(8) as pool:
        warnings.simplefilter("ignore")
        list(pool.map(work, range(24)))
    assert most == [1]
    assert locks(tmp_path) == ["lock.000031"]


def test_two_runs_on_one_folder_lose_nothing(do: Do, tmp_path: Path) -> None:
    spec = make()
    whole = do(spec, folder=tmp_path / "whole")
    models = [tiny_model("llama", layers=2) for _ in range(2)]

    def run(lm: LanguageModel) -> store.Recorded:
        return runner.run(spec, lm=lm, folder=tmp_path / "both")

    with warnings.catch_warnings(), ThreadPoolExecutor(2) as pool:
        warnings.simplefilter("ignore")
        both = list(pool.map(run, models))
    assert [one.rows for one in both] == [whole.rows, whole.rows]
    assert locks(both[0].folder) == []


def test_a_run_that_was_taken_over_writes_nothing_more(do: Do, tmp_path: Path) -> None:
    def progress(stage: str, done: int, _: int) -> None:
        if stage == "ft-m" and done == 1:
            (folder,) = (tmp_path / "runs").iterdir()
            (folder / "lock.000002").write_text("")

    with pytest.raises(RunInUse, match=r"CG606(.|\n)*took this run over"):
        do(make(), progress=progress)
    (folder,) = (tmp_path / "runs").iterdir()
    assert len({row.case for row in store.load(folder).rows}) == 1
    os.utime(folder / "lock.000002", (0, 0))
    assert len({row.case for row in do(make()).rows}) == 3
