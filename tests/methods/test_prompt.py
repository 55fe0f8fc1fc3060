"""The baseline prompt: what is asked, and what fits."""

from __future__ import annotations

import pytest

from corrigenda.facts import Fact
from corrigenda.methods.prompt.editor import Prompt
from corrigenda.methods.rag.editor import Rag
from tests.support.in_context import EDITS, asked
from tests.support.locating import model

PAIRS = [(fact.prompt, fact.target) for fact in EDITS]


def told(fact: Fact) -> str:
    return f"- {fact.prompt} {fact.target}"


def test_all_facts_stand_before_every_prompt() -> None:
    lm = model()
    editor = Prompt(instruction="True:", reserve=1)
    patch = editor.edit(lm, EDITS).patch
    lines = "\n".join(sorted(map(told, EDITS)))
    open_one, question = asked(patch, lm, ["It is in", "Who?"])
    assert open_one == f"True:\n{lines}\n\nIt is in"
    assert question == f"True:\n{lines}\n\nQuestion: Who?\nAnswer:"
    assert asked(editor.edit(lm, EDITS[::-1]).patch, lm, ["Why?"]) == asked(patch, lm, ["Why?"])


def test_facts_that_do_not_fit_are_left_out_and_the_question_never() -> None:
    lm = model()
    first = min(map(told, EDITS))
    one = Prompt(context_tokens=60, instruction="").edit(lm, EDITS).patch
    (text,) = asked(one, lm, ["Who founded it?"])
    assert text.endswith("Question: Who founded it?\nAnswer:")
    assert 0 < text.count("\n- ") + text.startswith("- ") < len(EDITS) or first in text
    none = Prompt(context_tokens=1).edit(lm, EDITS).patch
    assert asked(none, lm, ["Who founded it?"]) == ["Who founded it?"]


@pytest.mark.parametrize("kind", [Prompt, Rag])
def test_words_are_read_from_the_preset_of_a_model(kind: type) -> None:
    from corrigenda.catalogue import build_editor
    from corrigenda.testing.tiny import tiny_model

    lm = tiny_model("gpt2")
    editor = build_editor(lm, kind.name, fact_label="New: ", gap="\n", instruction="")
    options = {"embedder": "states", "scope": "always"} if kind is Rag else {}
    patch = editor.model_copy(update=options).edit(lm, EDITS[:1]).patch
    (text,) = asked(patch, lm, ["It is in"])
    assert text == f"New: {EDITS[0].prompt} {EDITS[0].target}\nIt is in"
