"""Registry of editing methods, read without importing torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from corrigenda.errors import UnknownMethod
from corrigenda.registry import Registry

if TYPE_CHECKING:
    from corrigenda.editor import Editor

METHODS: Registry[Editor] = Registry(
    "method",
    "corrigenda.methods",
    "corrigenda.editor:Editor",
    UnknownMethod,
    group="corrigenda.methods",
)
"""Editing methods: those with a card in a folder of `corrigenda/methods`, and plug-ins."""


def methods_for_experts() -> str:
    """List the methods that edit mixtures of experts, with the options they need there.

    Their cards say so: `experts` is true, or the options in words.
    """
    found = []
    for name in METHODS.names():
        how = METHODS.card(name).get("experts")
        if how:
            found.append(name if how is True else f"{name} ({how})")
    return ", ".join(found)
