"""What active patches add to a weight, merged into it or at run time."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.patch.changes import add_to_weight
from corrigenda.patch.ledger import ledger_of
from corrigenda.patch.value import PatchValue


def added_to_weight(lm: LanguageModel, site: Site) -> Float[Tensor, "d_out d_in"]:
    """Return what the active patches add to a weight, W_t - W_0; float64, on its device.

    Of merged patches that is what is left after rounding; of others their whole changes.

    Raises:
        UnknownSite (CG303): no such layer, part or expert.
    """
    ledger = ledger_of(lm)
    if lm.is_quantised:
        shape, device = lm.shape(site), lm.device_at(site)
        moved = torch.zeros(shape, dtype=torch.float64, device=device)
    else:
        moved = lm.weight(site).double() - ledger.pristine(lm, site).double()
    for entry in ledger.entries:
        if entry.changes or not isinstance(entry.patch, PatchValue):
            continue
        for changed, change in entry.patch.weight_changes():
            if changed == site:
                add_to_weight(change, moved)
    return moved
