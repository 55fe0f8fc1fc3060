"""The app as an ASGI application: its pages, downloads and reports, guarded by `PageGuard`."""

# pyright: reportMissingImports=false
# gradio is an optional package, extra `app`.

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

import gradio as gr
from fastapi import FastAPI
from gradio.themes import Base as Theme
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response

import corrigenda
from corrigenda.app.access import PageGuard
from corrigenda.app.pages.book import add_book_page, draw_history, list_corrections
from corrigenda.app.pages.compare import add_compare_page
from corrigenda.app.pages.correct import add_correct_page
from corrigenda.app.pages.fields import connect
from corrigenda.app.pages.runs import add_runs_page, list_runs
from corrigenda.app.pages.where import add_where_page
from corrigenda.app.workspace import Workspace
from corrigenda.errors import CorrigendaError
from corrigenda.reports.page import render_page
from corrigenda.run import store
from corrigenda.serving.settings import Access

_QUEUE = "model"
_SYSTEM_FONTS = ("system-ui", "sans-serif")
_SYSTEM_MONO = ("ui-monospace", "monospace")


def build_app(
    workspace: Workspace,
    *,
    host: str = "127.0.0.1",
    access: Access | None = None,
    runs: str | Path = store.FOLDER,
) -> FastAPI:
    """Return the ASGI application of an app.

    Args:
        workspace: The model and its corrections.
        host: Where it will listen, one of the names it may be called by.
        access: Token and names.
        runs: Folder of runs of `evaluate`.
    """
    # Files that the framework keeps are removed with the downloads.
    os.environ["GRADIO_TEMP_DIR"] = str(workspace.downloads / "pages")
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    folder = Path(runs)

    @app.get("/downloads/{name}")
    async def download(name: str) -> Response:
        path = workspace.downloads / Path(name).name
        if not path.is_file():
            return PlainTextResponse("No such file.", 404)
        return FileResponse(path, filename=path.name)

    @app.get("/reports/{run}")
    def show_report(run: str) -> Response:
        if run not in store.list_ids(folder):
            return PlainTextResponse("No such run.", 404)
        try:
            return HTMLResponse(render_page(corrigenda.report(run, folder=folder).content))
        except CorrigendaError as error:
            return PlainTextResponse(str(error), 400)

    package = files("corrigenda.app")
    gr.mount_gradio_app(
        app,
        build_pages(workspace, folder),
        path="/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        theme=make_theme(),
        css=package.joinpath("style.css").read_text(encoding="utf-8"),
        js=package.joinpath("behaviour.js").read_text(encoding="utf-8"),
    )
    app.add_middleware(PageGuard, host=host, access=access or Access())
    return app


def make_theme() -> Theme:
    """Return the theme: fonts of the system, and colours of enough contrast in light and dark."""
    theme = Theme(font=_SYSTEM_FONTS, font_mono=_SYSTEM_MONO, primary_hue="violet")
    return theme.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_800",
        block_label_text_color_dark="*neutral_100",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
    )


def build_pages(workspace: Workspace, runs: Path) -> gr.Blocks:
    """Return the pages; telemetry of the framework is off."""
    with gr.Blocks(title="Corrigenda", analytics_enabled=False, fill_width=True) as pages:
        gr.Markdown(f"# Corrigenda: {workspace.lm.name}")
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab("Correct", id="correct"):
                active = add_correct_page(workspace, _QUEUE)
            with gr.Tab("Where", id="where"):
                add_where_page(workspace, _QUEUE)
            with gr.Tab("Compare", id="compare"):
                add_compare_page(workspace, _QUEUE)
            with gr.Tab("Book", id="book") as book:
                history = add_book_page(workspace, _QUEUE, active)
            with gr.Tab("Runs", id="runs"):
                recorded = add_runs_page(runs)
        connect([pages.load], lambda: list_corrections(workspace), [], [active])
        connect([pages.load, book.select], lambda: draw_history(workspace), [], [history])
        connect([pages.load], lambda: list_runs(runs), [], [recorded])
    return pages
