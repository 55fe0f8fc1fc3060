"""*Book*: the corrections with their history; one is undone, or all are asked again."""

# pyright: reportMissingImports=false
# gradio is an optional package, extra `app`.

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import gradio as gr

from corrigenda.app.drawing import draw_note, draw_table
from corrigenda.app.pages.fields import add_status, connect
from corrigenda.app.streaming import stream_work
from corrigenda.errors import BadConfig

if TYPE_CHECKING:
    from corrigenda.app.workspace import Workspace
    from corrigenda.books.checking import BookCheck
    from corrigenda.books.history import Commit
    from corrigenda.books.records import Correction

_HEADS = ("number", "correction", "method", "guard", "held when asked", "added", "undone")


def add_book_page(workspace: Workspace, queue: str, choice: gr.Radio) -> gr.HTML:
    """Add the page.

    Args:
        workspace: The model and its book.
        queue: Name of the queue of all work that uses the model.
        choice: The list of corrections on the page *Correct*, which follows what is undone here.

    Returns:
        The history, to be filled when the page is opened.
    """
    place = f"`{workspace.book.folder}`" if workspace.is_kept else "none is open"
    lasting = (
        "Corrections are kept in this folder; `git` has who made them and when."
        if workspace.is_kept
        else "Corrections last until the app ends. `corrigenda book new FOLDER MODEL` makes a "
        "book, `corrigenda app FOLDER` opens it."
    )
    gr.Markdown(f"Book: {place}. {lasting}")
    history = gr.HTML(elem_id="book-history")
    chosen = gr.Textbox(
        "",
        label="Correction to undo",
        info="Its number in the table.",
        elem_id="book-chosen",
        max_lines=1,
    )
    with gr.Row():
        undo = gr.Button("Undo", variant="primary", elem_id="book-undo")
        check = gr.Button("Ask all again", elem_id="book-check")
        refresh = gr.Button("Read the folder again", elem_id="book-refresh")
        cancel = gr.Button("Cancel", elem_id="book-cancel")
    status = add_status("book")
    result = gr.HTML(elem_id="book-result")

    def run_undo(name: str) -> Iterator[dict[object, object]]:
        def work() -> Correction:
            if not name.strip():
                raise BadConfig("no correction is named.", hint="Give its number.")
            return workspace.undo(name.strip())

        def show(undone: Correction) -> dict[object, object]:
            return {
                status: draw_note(f"Undone, bit for bit: {undone.number}: {undone.label}"),
                history: draw_history(workspace),
                choice: list_corrections(workspace),
            }

        yield from stream_work(workspace, status, work, show)

    def run_check() -> Iterator[dict[object, object]]:
        def show(found: BookCheck) -> dict[object, object]:
            return {result: draw_check(found), history: draw_history(workspace)}

        yield from stream_work(workspace, status, workspace.check, show)

    events = [undo.click, chosen.submit]
    connect(events, run_undo, [chosen], [status, history, choice], queue=queue)
    connect([check.click], run_check, [], [status, result, history], queue=queue)
    connect(
        [refresh.click],
        lambda: (draw_history(workspace), list_corrections(workspace)),
        [],
        [history, choice],
    )
    connect([cancel.click], workspace.cancel, [], [])
    return history


def list_corrections(workspace: Workspace) -> gr.Radio:
    """Return the update of a list of the corrections; the last one is chosen."""
    made = workspace.book.corrections
    return gr.Radio(
        choices=[(f"{one.number}: {one.label}", one.id) for one in made],
        value=made[-1].id if made else None,
        info=f"{len(made)} on the model." if made else "None yet.",
    )


def draw_history(workspace: Workspace) -> str:
    """Return every correction of the book, those undone too, the last one first."""
    entries = workspace.book.log()
    if not entries:
        return draw_note("No correction yet.")
    rows = [
        (
            entry.correction.number,
            entry.correction.label,
            entry.correction.method or "-",
            entry.correction.verdict.guard or "-",
            "yes" if entry.correction.verdict.holds else "no",
            _describe(entry.added),
            _describe(entry.removed) if entry.undone else "",
        )
        for entry in reversed(entries)
    ]
    return draw_table(_HEADS, rows, caption="Corrections of the book")


def draw_check(found: BookCheck) -> str:
    """Return the corrections that were asked again, each with its outcome."""
    rows = [
        (
            one.correction.number,
            one.correction.label,
            ", ".join(one.verdict.outcomes),
            "; ".join(f"{role} {share}" for role, share in one.verdict.shares.items()),
            "yes" if one.changed else "no",
        )
        for one in found.results
    ]
    heads = ("number", "correction", "outcome", "wanted answers", "changed since")
    word = "All hold." if found.holds else "Not all hold."
    return draw_note(word) + draw_table(heads, rows, caption="Asked again")


def _describe(commit: Commit | None) -> str:
    return "not committed" if commit is None else f"{commit.author}, {commit.date[:10]}"
