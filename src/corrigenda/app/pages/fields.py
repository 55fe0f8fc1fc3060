"""Fields of a fact that several pages have, and the fact that they hold."""

# pyright: reportMissingImports=false
# gradio is an optional package, extra `app`.

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

from corrigenda.catalogue import list_methods
from corrigenda.errors import BadConfig
from corrigenda.facts import Fact

EXAMPLE = "The capital of France is"
DEFAULT_METHOD = "rome"


class FactFields(NamedTuple):
    """Components in which a fact is written."""

    prompt: gr.Textbox
    target: gr.Textbox
    subject: gr.Textbox


class RelatedFields(NamedTuple):
    """Components for prompts that are asked besides, one a line."""

    paraphrases: gr.Textbox
    neighbours: gr.Textbox


def add_fact_fields(name: str, *, target: str = "Correct answer") -> FactFields:
    """Add the fields of a fact to a page.

    Args:
        name: Begins the ids of the fields.
        target: Label of the answer.
    """
    with gr.Row():
        prompt = gr.Textbox(
            "",
            label="Prompt",
            info="Text up to the answer.",
            placeholder=EXAMPLE,
            elem_id=f"{name}-prompt",
            lines=1,
            max_lines=1,
            scale=3,
        )
        answer = gr.Textbox(
            "", label=target, info="What should follow.", elem_id=f"{name}-target", max_lines=1
        )
        subject = gr.Textbox(
            "",
            label="Subject",
            info="Found where it is certain.",
            elem_id=f"{name}-subject",
            max_lines=1,
        )
    return FactFields(prompt, answer, subject)


def add_related_fields(name: str) -> RelatedFields:
    """Add fields for paraphrases and neighbours."""
    with gr.Row():
        paraphrases = gr.Textbox(
            "",
            label="Paraphrases",
            info="Other wordings, one a line: they should get the answer too.",
            elem_id=f"{name}-paraphrases",
            lines=3,
        )
        neighbours = gr.Textbox(
            "",
            label="Neighbours",
            info="The same of other subjects, one a line: they should keep theirs.",
            elem_id=f"{name}-neighbours",
            lines=3,
        )
    return RelatedFields(paraphrases, neighbours)


def add_status(name: str) -> gr.HTML:
    """Add the place for progress and errors, which screen readers read when it changes."""
    return gr.HTML(elem_id=f"{name}-status", elem_classes="status")


def connect(
    events: Sequence[Callable[..., Dependency]],
    function: Callable[..., object],
    inputs: Sequence[Component],
    outputs: Sequence[Component],
    *,
    queue: str | None = None,
) -> None:
    """Let events of a page call a function; it is no part of a public interface over HTTP.

    Args:
        events: Such as `button.click`.
        function: Takes the values of `inputs`; returns or yields those of `outputs`.
        inputs: Components that are read.
        outputs: Components that are written.
        queue: Name of the queue of work that is done one after the other; None for none.
    """
    gr.on(
        events,
        function,
        inputs,
        outputs,
        concurrency_id=queue,
        show_progress="hidden",
        api_visibility="private",
    )


def list_choices(*, quick: bool = False) -> list[str]:
    """Return the names of methods; with `quick`, those that need no training."""
    return [row.name for row in list_methods() if not (quick and row.training)]


def make_fact(
    prompt: str, target: str, subject: str, paraphrases: str = "", neighbours: str = ""
) -> Fact:
    """Return the fact that fields hold; see `Fact` for its errors."""
    return Fact(
        prompt=prompt,
        target=target,
        subject=subject.strip() or None,
        paraphrases=tuple(_split_lines(paraphrases)),
        neighbours=tuple(_split_lines(neighbours)),
    )


def parse_layer(text: str) -> int | None:
    """Return the block in a field; None where it is empty.

    Raises:
        BadConfig (CG502): it is no number of a block.
    """
    if not text.strip():
        return None
    if not text.strip().isdecimal():
        raise BadConfig(f'"{text}" is no block.', hint="Give 0 or more, or leave it empty.")
    return int(text)


def _split_lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
