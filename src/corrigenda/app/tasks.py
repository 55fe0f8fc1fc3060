"""Long work in a thread of its own: its progress is read meanwhile, and it can be cancelled."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from corrigenda.progress import show_progress

Result = TypeVar("Result")

_SECONDS = 0.2


class Cancelled(Exception):
    """Raised within work that was cancelled, where it next reports progress."""


@dataclass
class StageProgress:
    """How much of the stages of a work is done.

    Attributes:
        stages: By stage, in the order they began: units done, and all units.
    """

    stages: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def current(self) -> tuple[str, int, int] | None:
        """Return the stage reported last, with units done and all units; None before the first."""
        if not self.stages:
            return None
        name, (done, total) = list(self.stages.items())[-1]
        return name, done, total


class BackgroundTask(Generic[Result]):
    """A function that runs in a thread, under a lock.

    Attributes:
        progress: What it has reported.
        notices: Warnings it gave.
    """

    def __init__(self, work: Callable[[], Result], lock: threading.Lock) -> None:
        """Hold work until `start`.

        Args:
            work: What to do; what it reports by `corrigenda.progress` is read here.
            lock: Held while it runs.
        """
        self.progress = StageProgress()
        self.notices: tuple[str, ...] = ()
        self._work, self._lock = work, lock
        self._cancelled = threading.Event()
        self._ended = threading.Event()
        self._results: list[Result] = []
        self._error: BaseException | None = None

    def start(self) -> BackgroundTask[Result]:
        """Run the work as soon as the lock is free; return this task."""
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def cancel(self) -> None:
        """Let the work end where it next reports progress; harmless when it has ended."""
        self._cancelled.set()

    def watch(self, *, seconds: float = _SECONDS) -> Iterator[StageProgress]:
        """Yield the progress from time to time until the work has ended."""
        while not self._ended.wait(seconds):
            yield self.progress

    def result(self) -> Result:
        """Return what the work returned, when it has ended.

        Raises:
            Cancelled: it was cancelled.
            CorrigendaError: what the work raised.
        """
        self._ended.wait()
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self) -> None:
        try:
            with self._lock, warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self._require_wanted()
                with show_progress(self._report):
                    self._results.append(self._work())
                self.notices = tuple(dict.fromkeys(str(one.message) for one in caught))
        except BaseException as error:
            self._error = error
        finally:
            self._ended.set()

    def _report(self, stage: str, done: int, total: int) -> None:
        self._require_wanted()
        self.progress.stages.pop(stage, None)
        self.progress.stages[stage] = (done, total)

    def _require_wanted(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled
