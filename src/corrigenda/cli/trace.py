"""`corrigenda trace`: where a model keeps a fact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from corrigenda.cli import options


def trace(
    model: options.Model,
    prompt: str,
) -> None:
    """Draw where restoring a hidden state brings a fact back (causal tracing)."""
