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
