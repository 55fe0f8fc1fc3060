"""Edits of the chat form: contexts of locate-then-edit methods, further facts of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from corrigenda.editor import Editor
from corrigenda.facts import Fact
from corrigenda.lm.chat import has_chat_template
from corrigenda.lm.model import LanguageModel

_OPTION = "chat_contexts"


def set_chat_contexts(editor: Editor, chat: bool) -> Editor:
    """Return an editor that has the chat form among its contexts only where it is wanted."""
    if chat or not getattr(editor, _OPTION, False):
        return editor
    return editor.model_copy(update={_OPTION: False})


def add_chat_forms(
    lm: LanguageModel, editor: Editor, facts: Sequence[Fact], chat: bool | None = None
) -> list[Fact]:
    """Return facts, each followed by itself in the chat form where the method learns from rows.

    Methods with contexts have the chat form among them, and methods that rewrite or answer prompts
    see what the user says, without the template; for both the facts come back as they are.

    Args:
        lm: The model.
        editor: The method.
        facts: What it will be given.
        chat: Whether to add them; by default where the model has a chat template.
    """
    wanted = has_chat_template(lm.tokenizer) if chat is None else chat
    if not (wanted and editor.learns_rows and editor.supports.batch):
        return list(facts)
    return [form for fact in facts for form in (fact, replace(fact, chat=True))]
