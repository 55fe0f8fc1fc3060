"""What a run will take of the machine's memory, said before it begins."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from corrigenda.cli import output

if TYPE_CHECKING:
    from corrigenda.editor import Editor
    from corrigenda.lm.model import LanguageModel

_GIGABYTE = 1e9
_WORTH_SAYING = 1e9


def announce(lm: LanguageModel, editor: Editor, num_facts: int, *, fit_only: bool = False) -> int:
    """Say how much memory a run needs beside the model, where it is a gigabyte or does not fit.

    Args:
        lm: The model.
        editor: The method with its settings.
        num_facts: How many facts will be edited at once.
        fit_only: Whether nothing is edited.

    Returns:
        The estimate in bytes; see `Editor.memory`.
    """
    estimate = editor.memory(lm, num_facts)
    needed = estimate.fit if fit_only else max(estimate)
    free = _free(lm)
    fits = free is None or needed <= free
    if needed >= _WORTH_SAYING or not fits:
        own = sum(one.numel() * one.element_size() for one in lm.model.parameters())
        text = (
            f"{editor.name} needs about {needed / _GIGABYTE:.1f} GB of memory beside the "
            f"{own / _GIGABYTE:.1f} GB of {lm.name}"
        )
        said = "" if free is None else f"; {free / _GIGABYTE:.1f} GB are free"
        output.notice(f"{text}{said}.")
    return needed


def _free(lm: LanguageModel) -> int | None:
    """Free bytes where the model is; None where the system does not say."""
    if lm.device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(lm.device)[0])
    names = getattr(os, "sysconf_names", {})
    if {"SC_AVPHYS_PAGES", "SC_PAGE_SIZE"} <= set(names):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
