"""Which family a model is of: by the table, else by the names and shapes of its modules."""

from __future__ import annotations

from torch import nn

from corrigenda.errors import UnknownFamily
from corrigenda.lm.families import Family, known


def resolve(model: nn.Module) -> Family:
    """Return the family of a model.

    Raises:
        UnknownFamily (CG302): it is not in the table and cannot be told.
    """
    family = known(model)
    if family is None:
        raise UnknownFamily(f"model type {model.config.model_type} is not known.")
    return family
