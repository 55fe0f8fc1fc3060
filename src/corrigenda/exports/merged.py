"""Write a model with a patch merged into its weights."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from corrigenda.errors import NotExportable
from corrigenda.exports.shards import find_shards, spread_as
from corrigenda.files import make_folder, temporary_folder
from corrigenda.lm.model import LanguageModel
from corrigenda.patch.ledger import ledger_of
from corrigenda.patch.protocols import Patch


def export_merged(patch: Patch, lm: LanguageModel, folder: str | Path) -> Path:
    """Write the model with the patch merged, and its tokenizer, by `save_pretrained`.

    Weights are spread over files as in the base model, where its folder can be found. Patches that
    are merged into the model already are part of it; if `patch` is not among them, it is applied
    while the files are written. Afterwards the model is bit for bit as it was.

    Args:
        patch: A weight patch.
        lm: The model.
        folder: Created if it is missing; files of the same names are replaced, all at the end.

    Raises:
        NotExportable (CG405): a patch is active that is no part of the weights, or the model
            carries adapters of another library.
        WriteFailed (CG601): the folder cannot be written; it is as it was.
        WrongBase (CG401): the patch does not belong on this model.
    """
    _refuse_adapters(lm)
    ledger = ledger_of(lm)
    outside = [entry.patch.header.method for entry in ledger.entries if entry.mode != "merge"]
    if outside or not hasattr(patch, "changes"):
        raise NotExportable(
            "only merged weights can be written into a checkpoint, and of these patches "
            f"some are not: {', '.join(outside) or patch.header.method}.",
            hint='Revert them, or apply them with mode="merge".',
        )
    if patch.is_empty or any(active == patch for active in ledger):
        return _save_model(lm, folder)
    with patch.apply(lm, mode="merge"):
        return _save_model(lm, folder)


def _refuse_adapters(lm: LanguageModel) -> None:
    """Refuse a model with adapters of peft, of which `save_pretrained` writes the adapters only."""
    carrying = [
        path
        for path, module in lm.model.named_modules()
        if isinstance(getattr(module, "base_layer", None), nn.Module)
    ]
    if carrying:
        raise NotExportable(
            f"the model carries adapters in {len(carrying)} modules, among them {carrying[0]}.",
            where=lm.name,
            hint="Merge them first (merge_and_unload of peft), or take them off "
            "(model.delete_adapter), and wrap the model again.",
        )


def _save_model(lm: LanguageModel, folder: str | Path) -> Path:
    folder = make_folder(folder)
    # Inside the folder, which may be a disk of its own.
    with temporary_folder(folder / "model") as part:
        lm.model.save_pretrained(part)
        lm.tokenizer.save_pretrained(part)
        shards = find_shards(lm.name)
        if shards is not None:
            spread_as(part, shards)
        for file in sorted(part.iterdir()):
            os.replace(file, folder / file.name)
    return folder
