"""Warn before a run that needs much of the machine's memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from corrigenda.cli import output

if TYPE_CHECKING:
    from corrigenda.editor import Editor
    from corrigenda.lm.model import LanguageModel

_GIGABYTE = 1e9
_LEAST_ANNOUNCED = 1e9


def announce(lm: LanguageModel, editor: Editor, num_facts: int, *, fit_only: bool = False) -> int:
    """Warn how much memory a run needs besides the model, if it is a gigabyte or does not fit.

    Args:
        lm: The model.
        editor: The method with its settings.
        num_facts: How many facts will be edited at once.
        fit_only: Whether nothing is edited.

    Returns:
        The estimate in bytes; see `Editor.memory`.
    """
    estimate = editor.memory(lm, num_facts)
    needed = estimate.fit if fit_only else max(estimate.fit, estimate.edit)
    free = _free_bytes(lm)
    fits = free is None or needed <= free
    if needed >= _LEAST_ANNOUNCED or not fits:
        own = sum(one.numel() * one.element_size() for one in lm.model.parameters())
        text = (
            f"{editor.name} needs about {needed / _GIGABYTE:.1f} GB of memory besides the "
            f"{own / _GIGABYTE:.1f} GB of {lm.name}"
        )
        rest = "" if free is None else f"; {free / _GIGABYTE:.1f} GB are free"
        output.notice(f"{text}{rest}.")
    return needed


def _free_bytes(lm: LanguageModel) -> int | None:
    """Return the free bytes of the model's device; None where they are not known."""
    from corrigenda.lm.footprint import room_of

    room = room_of(lm)
    if room.free is not None:
        return room.free
    names = getattr(os, "sysconf_names", {})
    if {"SC_AVPHYS_PAGES", "SC_PAGE_SIZE"} <= set(names):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
