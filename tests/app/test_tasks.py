"""Work in a thread: progress, results, errors, cancelling, one at a time."""

from __future__ import annotations

import threading
import warnings

import pytest

from corrigenda.app.tasks import BackgroundTask, Cancelled
from corrigenda.errors import BadConfig
from corrigenda.progress import report_stage


@pytest.fixture
def lock() -> threading.Lock:
    return threading.Lock()


def test_progress_is_that_of_the_stage_reported_last(lock: threading.Lock) -> None:
    reported, go = threading.Event(), threading.Event()

    def work() -> int:
        report_stage("search", 3, 20)
        report_stage("writing", 1, 2)
        report_stage("search", 4, 20)
        reported.set()
        assert go.wait(60)
        return 7

    task = BackgroundTask(work, lock).start()
    assert reported.wait(60)
    progress = next(task.watch(seconds=0.001))
    assert progress.current == ("search", 4, 20)
    assert progress.stages["writing"] == (1, 2)
    go.set()
    assert task.result() == 7
    assert list(task.watch()) == []


def test_cancelled_work_ends_where_it_reports_next(lock: threading.Lock) -> None:
    started, go, after = threading.Event(), threading.Event(), []

    def work() -> None:
        report_stage("search", 0, 2)
        started.set()
        assert go.wait(60)
        report_stage("search", 1, 2)
        after.append("reached")

    task = BackgroundTask(work, lock).start()
    assert started.wait(60)
    task.cancel()
    go.set()
    with pytest.raises(Cancelled):
        task.result()
    assert not after
    assert not lock.locked()


def test_work_waits_for_the_lock_and_can_be_cancelled_there(lock: threading.Lock) -> None:
    ran: list[int] = []
    with lock:
        first, second = (BackgroundTask(lambda n=n: ran.append(n), lock).start() for n in (1, 2))
        second.cancel()
        assert next(first.watch(seconds=0.001)).current is None
        assert not ran
    first.result()
    with pytest.raises(Cancelled):
        second.result()
    assert ran == [1]


def test_errors_are_raised_where_the_result_is_read(lock: threading.Lock) -> None:
    def work() -> None:
        raise BadConfig("no dtype.")

    with pytest.raises(BadConfig, match="CG502"):
        BackgroundTask(work, lock).start().result()


def test_warnings_become_notices(lock: threading.Lock) -> None:
    def work() -> None:
        for _ in range(2):
            warnings.warn("a BOS is typed", stacklevel=2)

    task = BackgroundTask(work, lock).start()
    task.result()
    assert task.notices == ("a BOS is typed",)
