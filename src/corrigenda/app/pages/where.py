"""*Where*: the causal trace of a fact, and the blocks at which a vector changes its answer."""

# pyright: reportMissingImports=false
# gradio is an optional package, extra `app`.

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import gradio as gr

from corrigenda.app.drawing import draw_plot
from corrigenda.app.pages.fields import add_fact_fields, add_status, connect, make_fact
from corrigenda.app.streaming import stream_work

if TYPE_CHECKING:
    from corrigenda.analysis.causal_trace import CausalTrace
    from corrigenda.analysis.injection import LayerInjections
    from corrigenda.app.workspace import Workspace

_SAMPLES = 10


def add_where_page(workspace: Workspace, queue: str) -> None:
    """Add the page; `queue` names the queue of all work that uses the model."""
    fields = add_fact_fields("where", target="Answer")
    samples = gr.Number(
        value=_SAMPLES,
        label="Noise samples",
        info="Of the trace: more take longer and are steadier.",
        precision=0,
        minimum=1,
        elem_id="where-samples",
    )
    gr.Markdown(
        "*Trace* noises the subject and restores one state after the other; the answer may stay "
        "empty, then it is the model's own. *Inject* searches a vector at each block that makes "
        "the answer true, as methods that locate a block do."
    )
    with gr.Row():
        trace = gr.Button("Trace", variant="primary", elem_id="where-trace")
        inject = gr.Button("Inject", elem_id="where-inject")
        cancel = gr.Button("Cancel", elem_id="where-cancel")
    status = add_status("where")
    result = gr.HTML(elem_id="where-result")

    def show(found: CausalTrace | LayerInjections) -> dict[object, object]:
        return {result: draw_plot(found.plot())}

    def run_trace(
        prompt: str, answer: str, subject: str, samples: float
    ) -> Iterator[dict[object, object]]:
        def work() -> CausalTrace:
            return workspace.trace(
                prompt, subject.strip() or None, answer.strip() or None, samples=int(samples or 0)
            )

        yield from stream_work(workspace, status, work, show)

    def run_inject(prompt: str, answer: str, subject: str) -> Iterator[dict[object, object]]:
        def work() -> LayerInjections:
            return workspace.inject(make_fact(prompt, answer, subject))

        yield from stream_work(workspace, status, work, show)

    outputs = [status, result]
    events = [trace.click, fields.prompt.submit]
    connect(events, run_trace, [*fields, samples], outputs, queue=queue)
    connect([inject.click], run_inject, [*fields], outputs, queue=queue)
    connect([cancel.click], workspace.cancel, [], [])
