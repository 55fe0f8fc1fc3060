"""Fields of a fact that several pages have, and the fact that they hold."""

from __future__ import annotations

from typing import NamedTuple

import gradio as gr

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


def parse_layer(value: float | None) -> int | None:
    """Return the block in a number field; None where it is empty.

    Raises:
        BadConfig (CG502): a number that is none of a block.
    """
    if value is None:
        return None
    if value < 0 or value != int(value):
        raise BadConfig(f"{value:g} is no block.", hint="Give 0 or more, or leave it empty.")
    return int(value)


def _split_lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
