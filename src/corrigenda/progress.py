"""Progress of long functions: the callback through which they report it, and a bar on stderr."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

VARIABLE = "CORRIGENDA_PROGRESS"
"""Environment variable; 0, no, off or false turns progress bars off."""

_WIDTH = 24


@runtime_checkable
class Progress(Protocol):
    """Callback through which long functions report progress: the stage, and how much is done."""

    def __call__(self, stage: str, done: int, total: int, /) -> object:
        """Report that `done` of `total` units of `stage` are finished."""
        ...


@contextmanager
def show_progress(progress: Progress | bool | None) -> Generator[Progress | None]:
    """Yield the callback to report to; a bar on stderr unless the caller decided otherwise.

    Args:
        progress: A callback, which is yielded; False for none; True for a bar; None for a bar in a
            terminal or notebook, unless the environment variable `CORRIGENDA_PROGRESS` is 0.
    """
    if progress is None:
        progress = _is_wanted()
    if not isinstance(progress, bool):
        yield progress
    elif not progress:
        yield None
    elif _in_notebook() and importlib.util.find_spec("ipywidgets") is None:
        with _plain_bar() as report:
            yield report
    else:
        with _rich_bar() as report:
            yield report


def _is_wanted() -> bool:
    if os.environ.get(VARIABLE, "").strip().lower() in ("0", "no", "off", "false"):
        return False
    return _in_notebook() or (sys.stderr is not None and sys.stderr.isatty())


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


@contextmanager
def _rich_bar() -> Generator[Progress]:
    """Yield a callback that draws one bar for each stage, and removes them in the end."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    with Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, highlight=False),
        transient=True,
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield report


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
