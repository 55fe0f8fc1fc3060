"""*Compare*: several methods on one fact, side by side; none stays on the model."""

# pyright: reportMissingImports=false
# gradio is an optional package, extra `app`.

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import gradio as gr

from corrigenda.app.comparison import MethodTrial, draw_trials, try_method
from corrigenda.app.drawing import draw_note
from corrigenda.app.pages.fields import (
    add_fact_fields,
    add_related_fields,
    add_status,
    connect,
    list_choices,
    make_fact,
)
from corrigenda.app.streaming import stream_work

if TYPE_CHECKING:
    from corrigenda.app.workspace import Workspace

_FIRST = ["rome", "ft-m", "grace"]


def add_compare_page(workspace: Workspace, queue: str) -> None:
    """Add the page; `queue` names the queue of all work that uses the model."""
    fields = add_fact_fields("compare")
    known = list_choices(quick=True)
    methods = gr.CheckboxGroup(
        known,
        value=[name for name in _FIRST if name in known],
        label="Methods",
        info="Those that need no training beforehand.",
        elem_id="compare-methods",
    )
    with gr.Accordion("What else to ask", open=False):
        related = add_related_fields("compare")
    with gr.Row():
        compare = gr.Button("Compare", variant="primary", elem_id="compare-compare")
        cancel = gr.Button("Cancel", elem_id="compare-cancel")
    status = add_status("compare")
    result = gr.HTML(elem_id="compare-result")

    def run_compare(
        prompt: str,
        target: str,
        subject: str,
        paraphrases: str,
        neighbours: str,
        chosen: list[str],
    ) -> Iterator[dict[object, object]]:
        trials: list[MethodTrial] = []
        yield {result: "", status: draw_note("Choose a method." if not chosen else "")}
        for name in chosen:
            before = len(trials)

            def work(name: str = name) -> MethodTrial:
                fact = make_fact(prompt, target, subject, paraphrases, neighbours)
                return try_method(workspace.lm, fact, name)

            def show(trial: MethodTrial) -> dict[object, object]:
                trials.append(trial)
                return {result: draw_trials(trials)}

            done = f"{before + 1} of {len(chosen)} methods done."
            yield from stream_work(workspace, status, work, show, done=done)
            if len(trials) == before:
                return

    connect(
        [compare.click, fields.target.submit],
        run_compare,
        [*fields, *related, methods],
        [status, result],
        queue=queue,
    )
    connect([cancel.click], workspace.cancel, [], [])
