"""What a page shows while work runs, and when it has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from corrigenda.app.drawing import draw_error, draw_note, draw_notices, draw_progress
from corrigenda.app.tasks import Cancelled
from corrigenda.app.workspace import Workspace
from corrigenda.errors import CorrigendaError

Value = TypeVar("Value")
Component = TypeVar("Component")


def stream_work(
    workspace: Workspace,
    status: Component,
    work: Callable[[], Value],
    show: Callable[[Value], Mapping[Component, object]],
    *,
    done: str = "Done.",
) -> Iterator[dict[Component, object]]:
    """Yield what components show: the progress in `status`, then the result, or what went wrong.

    Args:
        workspace: Whose model is used.
        status: Component that is read out when it changes.
        work: What to do, in a thread of its own.
        show: What the other components show of its result.
        done: Shown in `status` at the end.
    """
    task = workspace.start(work)
    for progress in task.watch():
        yield {status: draw_progress(progress)}
    try:
        result = task.result()
    except Cancelled:
        yield {status: draw_note("Cancelled. The model is as it was.")}
    except CorrigendaError as error:
        yield {status: draw_error(error)}
    else:
        yield {status: draw_note(done) + draw_notices(task.notices), **show(result)}
