"""*Runs*: what `corrigenda evaluate` recorded, with the reports."""

# pyright: reportMissingImports=false
# gradio is an optional package, extra `app`.

from __future__ import annotations

import html
from pathlib import Path

import gradio as gr

import corrigenda
from corrigenda.app.drawing import draw_error, draw_note, wrap_region
from corrigenda.app.pages.fields import add_status, connect
from corrigenda.errors import CorrigendaError
from corrigenda.run import store


def add_runs_page(folder: Path) -> gr.Radio:
    """Add the page of runs in a folder.

    Returns:
        The list of runs, to be filled when the page is opened.
    """
    gr.Markdown(f"Runs that `corrigenda evaluate` recorded in `{folder}`.")
    runs = gr.Radio([], label="Runs", elem_id="runs-list")
    with gr.Row():
        refresh = gr.Button("Read the folder again", elem_id="runs-refresh")
        show = gr.Button("Show the report", variant="primary", elem_id="runs-show")
    status = add_status("runs")
    result = gr.HTML(elem_id="runs-result")

    def run_show(run: str | None) -> dict[object, object]:
        if not run:
            return {status: draw_note("Choose a run."), result: ""}
        try:
            document = corrigenda.report(run, folder=folder)
        except CorrigendaError as error:
            return {status: draw_error(error), result: ""}
        link = (
            f'<p><a href="/reports/{html.escape(run)}" target="_blank">'
            "Open the whole report in a new tab</a></p>"
        )
        tables = wrap_region(document._repr_html_(), "Tables of the report")
        return {status: draw_note("Done."), result: link + tables}

    connect([refresh.click], lambda: list_runs(folder), [], [runs])
    connect([show.click], run_show, [runs], [status, result])
    return runs


def list_runs(folder: Path) -> gr.Radio:
    """Return the update of the list of runs, the newest first."""
    choices: list[tuple[str, str]] = []
    for run in store.list_ids(folder) if folder.is_dir() else []:
        manifest = store.read_manifest(store.find_run(run, folder))
        method = manifest.spec.get("editor")
        name = method.get("name", "") if isinstance(method, dict) else method
        done = "" if manifest.finished else ", not finished"
        label = f"{run}: {name} on {manifest.model}, {manifest.cases} cases{done}"
        choices.append((f"{label} ({manifest.started})", run))
    choices.reverse()
    return gr.Radio(
        choices=choices,
        value=choices[0][1] if choices else None,
        info="" if choices else "None here: corrigenda evaluate pocket-quick makes some.",
    )
