"""A progress bar on stderr for a job that reports shares done."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from corrigenda.cli.output import stderr


@contextmanager
def show_share() -> Generator[Callable[[float, str], None]]:
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
