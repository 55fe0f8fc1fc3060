"""*Book*: the history of a book of corrections, and one of them undone."""

from __future__ import annotations

import gradio as gr


def add_book_page() -> None:
    """Add the page that an app without a book has."""
    gr.Markdown("No book is open. Start the app with the folder of one: `corrigenda app FOLDER`.")
