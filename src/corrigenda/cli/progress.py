"""Progress bars on stderr for commands that take long."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from corrigenda.cli.output import stderr


@contextmanager
def line() -> Generator[Callable[[float, str], None]]:
    """Show one bar for a job that reports `(share done, figures)`; silent off a terminal."""
    with Progress(
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=stderr(),
        disable=not stderr().is_terminal,
    ) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda done, text: progress.update(task, completed=done, description=text)


@contextmanager
def bar() -> Generator[Callable[[str, int, int], None]]:
    """Show a bar for every stage that reports `(stage, done, total)`; silent off a terminal."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=stderr(),
        disable=not stderr().is_terminal,
        transient=True,
    ) as progress:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

        yield report
