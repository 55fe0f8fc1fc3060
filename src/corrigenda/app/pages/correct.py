"""*Correct*: ask, correct a fact, see what changed and what did not, undo, download."""

# pyright: reportMissingImports=false
# gradio is an optional package, extra `app`.

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import gradio as gr

import corrigenda
from corrigenda.app.drawing import draw_assessment, draw_bars, draw_note, draw_reply, draw_verdict
from corrigenda.app.pages.book import list_corrections
from corrigenda.app.pages.fields import (
    DEFAULT_METHOD,
    add_fact_fields,
    add_related_fields,
    add_status,
    connect,
    list_choices,
    make_fact,
    parse_layer,
)
from corrigenda.app.streaming import stream_work
from corrigenda.app.workspace import DownloadForm
from corrigenda.errors import BadConfig

if TYPE_CHECKING:
    from pathlib import Path

    from corrigenda.api import Reply
    from corrigenda.app.workspace import CorrectionTrial, Workspace
    from corrigenda.books.records import Correction

Updates = Iterator[dict[object, object]]


def add_correct_page(workspace: Workspace, queue: str) -> gr.Radio:
    """Add the page.

    Args:
        workspace: The model and its corrections.
        queue: Name of the queue of all work that uses the model.

    Returns:
        The list of corrections, to be filled when the page is opened.
    """
    fields = add_fact_fields("correct")
    in_chat = gr.Checkbox(
        label="Ask in the chat form", elem_id="correct-chat", visible=workspace.has_chat
    )
    guard = gr.Checkbox(
        value=True,
        label="Check what must not change",
        info="Takes longer; a correction beyond the limits does not stay.",
        elem_id="correct-guard",
    )
    with gr.Accordion("Method, and what else to ask", open=False):
        with gr.Row():
            method = gr.Dropdown(
                list_choices(), value=DEFAULT_METHOD, label="Method", elem_id="correct-method"
            )
            layer = gr.Textbox(
                "",
                label="Block",
                info="The preset's where empty.",
                max_lines=1,
                elem_id="correct-layer",
            )
        related = add_related_fields("correct")
    with gr.Row():
        ask = gr.Button("Ask", elem_id="correct-ask")
        correct = gr.Button("Correct", variant="primary", elem_id="correct-correct")
        cancel = gr.Button("Cancel", elem_id="correct-cancel")
    status = add_status("correct")
    result = gr.HTML(elem_id="correct-result")
    gr.Markdown("## Corrections on the model")
    active = gr.Radio([], label="Corrections", elem_id="correct-active")
    with gr.Row():
        undo = gr.Button("Undo the chosen one", elem_id="correct-undo")
        form = gr.Dropdown(
            [str(one) for one in DownloadForm],
            value=str(DownloadForm.PATCH),
            label="Form",
            elem_id="correct-form",
        )
        export = gr.Button("Export all", elem_id="correct-export")
    link = gr.HTML(elem_id="correct-link", elem_classes="status")

    def run_ask(prompt: str, chat: bool) -> Updates:
        def show(reply: Reply) -> dict[object, object]:
            return {result: draw_reply(reply)}

        yield from stream_work(
            workspace, status, lambda: corrigenda.ask(workspace.lm, prompt, chat=chat), show
        )

    def run_correct(
        prompt: str,
        target: str,
        subject: str,
        paraphrases: str,
        neighbours: str,
        method: str,
        layer: str,
        guard: bool,
    ) -> Updates:
        def work() -> CorrectionTrial:
            fact = make_fact(prompt, target, subject, paraphrases, neighbours)
            return workspace.correct(fact, method, layer=parse_layer(layer), guard=guard)

        def show(made: CorrectionTrial) -> dict[object, object]:
            return {
                status: draw_note(_describe(made)),
                result: draw_correction(made),
                active: list_corrections(workspace),
            }

        yield from stream_work(workspace, status, work, show)

    def run_undo(name: str | None) -> Updates:
        def work() -> Correction:
            if not name:
                raise BadConfig("no correction is chosen.", hint="Choose one of the list.")
            return workspace.undo(name)

        def show(undone: Correction) -> dict[object, object]:
            return {
                status: draw_note(f"Undone, bit for bit: {undone.number}: {undone.label}"),
                active: list_corrections(workspace),
            }

        yield from stream_work(workspace, status, work, show)

    def run_export(form: str) -> Updates:
        def show(path: Path) -> dict[object, object]:
            return {link: draw_link(path.name)}

        yield from stream_work(workspace, link, lambda: workspace.export(form), show)

    asked = [fields.prompt, in_chat]
    connect([ask.click, fields.prompt.submit], run_ask, asked, [status, result], queue=queue)
    connect(
        [correct.click, fields.target.submit],
        run_correct,
        [*fields, *related, method, layer, guard],
        [status, result, active],
        queue=queue,
    )
    connect([undo.click], run_undo, [active], [status, active], queue=queue)
    connect([export.click], run_export, [form], [link], queue=queue)
    connect([cancel.click], workspace.cancel, [], [])
    return active


def draw_correction(made: CorrectionTrial) -> str:
    """Return next tokens, verdict and answers, before and after a correction."""
    return (
        draw_bars(["before", "after"], [made.before, made.after])
        + draw_assessment(made.assessment)
        + ("" if made.guarded is None else draw_verdict(made.guarded))
    )


def draw_link(name: str) -> str:
    """Return the link to a file for download."""
    return f'<p><a href="/downloads/{name}" download>Download {name}</a></p>'


def _describe(made: CorrectionTrial) -> str:
    if made.kept is not None:
        return f"Corrected: {made.kept.number}: {made.kept.label}"
    if made.assessment.is_no_op:
        return "The model says so already: nothing was changed."
    if made.is_refused:
        return "Refused by the guard: the correction was taken off."
    return "It did not take: nothing was kept. Try another method or block."
