"""Progress of commands: the first line, and a bar for a job that reports shares done."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from corrigenda.cli.output import stderr
from corrigenda.progress import report_stage


def announce_loading(model: str) -> None:
    """Show that a model is loaded; called before the slow imports that loading needs."""
    report_stage(_name_loading(model), 0, 1)


def finish_loading(model: str) -> None:
    """Show that a model is loaded completely."""
    report_stage(_name_loading(model), 1, 1)


def _name_loading(model: str) -> str:
    return f"loading {Path(model).name or model}"


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
