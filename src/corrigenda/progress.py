"""Progress of long functions: how they report it, and bars on stderr."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

VARIABLE = "CORRIGENDA_PROGRESS"
"""Environment variable; 0, no, off or false turns progress bars off."""

_WIDTH = 24
_REFRESHES = 4


@runtime_checkable
class Progress(Protocol):
    """Callback through which long functions report progress: the stage, and how much is done."""

    def __call__(self, stage: str, done: int, total: int, /) -> object:
        """Report that `done` of `total` units of `stage` are finished."""
        ...


@runtime_checkable
class Display(Progress, Protocol):
    """A progress report that also shows a text beside a stage, and can be closed early."""

    def note(self, stage: str, text: str, /) -> object:
        """Show a text beside a stage that was reported."""
        ...

    def close(self) -> object:
        """Remove what is drawn; later reports draw nothing."""
        ...


_CURRENT: ContextVar[Progress | None] = ContextVar("progress", default=None)


@contextmanager
def show_progress(progress: Progress | bool | None) -> Generator[Progress | None]:
    """Yield the callback to report to; a bar on stderr unless the caller decided otherwise.

    Until left, `report_stage` reports to it as well.

    Args:
        progress: A callback, which is yielded; False for none; True for a bar; None for the one
            that an outer call shows, else a bar in a terminal or notebook, unless the environment
            variable `CORRIGENDA_PROGRESS` is 0.
    """
    with _open_report(progress) as report:
        token = _CURRENT.set(report)
        try:
            yield report
        finally:
            _CURRENT.reset(token)


def report_stage(stage: str, done: int, total: int, *, note: str = "") -> None:
    """Report that `done` of `total` units of a stage are finished, where progress is shown.

    Args:
        stage: What runs, in a word or two.
        done: Finished units; 0 where the stage begins.
        total: All units.
        note: A figure to show beside it; callbacks of users do not get it.
    """
    current = _CURRENT.get()
    if current is None:
        return
    current(stage, done, total)
    if note and isinstance(current, Display):
        current.note(stage, note)


def close_progress() -> None:
    """Remove the bars that are shown, before a result is printed."""
    current = _CURRENT.get()
    if isinstance(current, Display):
        current.close()


@contextmanager
def _open_report(progress: Progress | bool | None) -> Generator[Progress | None]:
    if progress is None:
        outer = _CURRENT.get()
        progress = outer if outer is not None else _is_wanted()
    if not isinstance(progress, bool):
        yield progress
    elif not progress:
        yield None
    elif _in_notebook() and importlib.util.find_spec("ipywidgets") is None:
        with _plain_bar() as report:
            yield report
    else:
        bars = _Bars()
        try:
            yield bars
        finally:
            bars.close()


def _is_wanted() -> bool:
    if os.environ.get(VARIABLE, "").strip().lower() in ("0", "no", "off", "false"):
        return False
    return _in_notebook() or (sys.stderr is not None and sys.stderr.isatty())


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


class _Bars:
    """One bar for each stage on stderr, from the first report on until closed."""

    def __init__(self) -> None:
        self._drawn: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._closed = False

    def __call__(self, stage: str, done: int, total: int, /) -> None:
        """Draw how much of a stage is done."""
        if self._closed:
            return
        bars = self._draw()
        if stage not in self._tasks:
            self._tasks[stage] = bars.add_task(stage, total=total, note="")
        bars.update(self._tasks[stage], completed=done, total=total)
        if done in (0, total):
            bars.refresh()

    def note(self, stage: str, text: str, /) -> None:
        """Draw a text beside a stage."""
        if self._drawn is not None and stage in self._tasks:
            self._drawn.update(self._tasks[stage], note=text)

    def close(self) -> None:
        """Remove all bars."""
        self._closed = True
        if self._drawn is not None:
            self._drawn.stop()
            self._drawn = None

    def _draw(self) -> Bars:
        if self._drawn is None:
            from rich import progress as rich
            from rich.console import Console

            self._drawn = rich.Progress(
                rich.TextColumn("{task.description}"),
                rich.BarColumn(),
                rich.MofNCompleteColumn(),
                rich.TimeElapsedColumn(),
                rich.TimeRemainingColumn(),
                rich.TextColumn("{task.fields[note]}"),
                console=Console(stderr=True, highlight=False),
                transient=True,
                redirect_stdout=False,
                refresh_per_second=_REFRESHES,
            )
            self._drawn.start()
        return self._drawn


@contextmanager
def _plain_bar() -> Generator[Progress]:
    """Yield a callback that rewrites one line, for notebooks that have no widgets."""
    widest = 0

    def write(text: str) -> None:
        nonlocal widest
        widest = max(widest, len(text))
        sys.stderr.write(f"\r{text.ljust(widest)}")
        sys.stderr.flush()

    def report(stage: str, done: int, total: int) -> None:
        filled = _WIDTH * done // max(total, 1)
        write(f"{stage} [{'#' * filled}{' ' * (_WIDTH - filled)}] {done}/{total}")

    try:
        yield report
    finally:
        if widest:
            write("")
            sys.stderr.write("\r")
