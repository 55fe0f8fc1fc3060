"""A book is whole at any moment: killed before each change of a file, and at random times."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from corrigenda import files
from corrigenda.books import Book
from corrigenda.lm.model import LanguageModel
from tests.books.conftest import WRITTEN, draw_patch, fact, weights

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

CHANGING = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
KILLED = 9


@pytest.fixture(autouse=True)
def unforced(monkeypatch):
    """Nothing is forced to disk: a process is killed here, not the machine."""
    monkeypatch.setattr(files, "_sync", lambda _: None)


def run_killed(action: Callable[[], object], after: int) -> bool:
    """Run an action in a process that dies before it changes a file; False where it ended.

    Args:
        action: What it does.
        after: How many changes it may make.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        left = [after]

        def count(event: str, given: tuple[object, ...]) -> None:
            writes = event == "open" and isinstance(given[2], int) and given[2] & WRITING
            if writes or event in CHANGING:
                left[0] -= 1
                if left[0] < 0:
                    os._exit(KILLED)

        try:
            sys.addaudithook(count)
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED)
    return code == KILLED


def read(folder: Path, lm: LanguageModel) -> tuple[tuple[str, ...], list[bytes]]:
    """The ids of a whole book, and the weights that it makes."""
    book = Book.open(folder)
    status = book.status(lm)
    assert status.is_sound, status.problems
    with book.apply(lm):
        return tuple(one.id for one in book.corrections), weights(lm)


ACTIONS = {
    "add": lambda book, lm: book.add(lm, fact(7), draw_patch(lm, 7), verdict=WRITTEN),
    "undo": lambda book, _: book.undo(2),
    "check": lambda book, lm: book.check(lm),
    "merge": lambda book, lm: book.merge(Book.open(book.folder.parent / "other"), keep="theirs"),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_killed_before_each_change_of_a_file(name, add, lm, tmp_path):
    """Each prefix of an action leaves the book from before, from after, or one in between."""
    other = Book.new(tmp_path / "other", lm)
    for number in (2, 5, 6):
        other.add(lm, fact(number, "Oslo"), draw_patch(lm, number + 10), verdict=WRITTEN)
    first = Book.new(tmp_path / "first", lm)
    for number in range(3):
        add(first, number)
    before = read(first.folder, lm)
    action = ACTIONS[name]
    seen = []
    for after in range(1000):
        folder = tmp_path / f"book-{after}"
        shutil.copytree(first.folder, folder)
        book = Book.open(folder)
        killed = run_killed(lambda one=book: action(one, lm), after)
        state = read(folder, lm)
        seen.append(state)
        # The next process finds nothing in its way, removes what is left, and ends the work.
        if killed:
            add(Book.open(folder), 9)
            kept = {one.id for one in Book.open(folder).corrections}
            assert {file.stem for file in folder.glob("patches/*")} == kept
            assert not list(folder.rglob(".*.tmp-*"))
        else:
            break
    assert not killed
    distinct = [state for state, last in zip(seen, [None, *seen], strict=False) if state != last]
    assert len(distinct) == len({ids for ids, _ in distinct}), "no state comes back"
    assert distinct[0] == before
    assert len(seen) > 10
    if name in ("add", "undo"):
        assert len(distinct) == 2
    if name == "check":
        assert len(distinct) == 1


def test_killed_at_any_time(lm, tmp_path):
    """A process that adds and undoes without end, killed at random times."""
    book = Book.new(tmp_path / "book", lm)
    chance = random.Random(0)

    def work() -> None:
        drawn = random.Random(os.getpid())
        for number in range(1000):
            place = 1000 * os.getpid() + number
            book.add(lm, fact(place), draw_patch(lm, place), verdict=WRITTEN)
            if drawn.random() < 0.4:
                book.undo(drawn.choice(book.corrections).id)

    for _ in range(8):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            try:
                work()
            finally:
                os._exit(1)
        time.sleep(chance.uniform(0.05, 0.5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        read(book.folder, lm)
    last = book.add(lm, fact(1), draw_patch(lm, 1), verdict=WRITTEN)
    assert book.corrections[-1] == last
    kept = {one.id for one in book.corrections}
    assert {file.stem for file in book.folder.glob("patches/*")} == kept


def test_two_processes_that_add_wait_for_each_other(lm, tmp_path):
    book = Book.new(tmp_path / "book", lm)
    children = []
    for part in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            try:
                warnings.simplefilter("ignore")
                for number in range(part, 12, 3):
                    book.add(lm, fact(number), draw_patch(lm, number), verdict=WRITTEN)
                os._exit(0)
            except BaseException:
                os._exit(1)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    assert sorted(one.number for one in book.corrections) == list(range(1, 13))
    assert len(read(book.folder, lm)[0]) == 12
