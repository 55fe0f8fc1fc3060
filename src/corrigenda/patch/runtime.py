"""Weight changes added to the outputs of a model while it runs, without touching a weight."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

from torch import Tensor

from corrigenda.errors import WrongBase
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.hooks import Copies, Term, scatter_rows
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.patch.changes import Change, Dense, Rows, tensors_of


def require_shapes(changes: Mapping[Site, Change], lm: LanguageModel) -> None:
    """Refuse changes that do not fit the weights of a model.

    Raises:
        WrongBase (CG401): a change has another shape than the weight.
        UnknownSite (CG303): the model has no such layer or part.
    """
    for site, change in changes.items():
        shape = lm.shape(site)
        if shape != change.shape:
            raise WrongBase(
                f"the patch changes a weight of shape {change.shape}, the model's is {shape}.",
                where=f"site {site} of {lm.name}",
                hint="The patch was made for a model of another size.",
            )


def added_at_run_time(
    changes: Mapping[Site, Change], lm: LanguageModel
) -> AbstractContextManager[None]:
    """Hooks that add each change's output at its site, until left.

    Sums are formed in float32 (float64 where the model is), then rounded to the model's dtype.
    """
    return lm.add({site: _term(change) for site, change in changes.items()})


def _term(change: Change) -> Term:
    names, tensors = zip(*tensors_of(change).items(), strict=True)
    copies = Copies(tensors)

    def term(x: Tensor, output: Tensor) -> Tensor:
        parts = dict(zip(names, copies.like(x), strict=True))
        match change:
            case LowRank():
                return (x @ parts["right"]) @ parts["left"].T
            case Dense():
                return x @ parts["delta"].T
            case Rows():
                added = x @ parts["values"].T
                return scatter_rows(added, parts["index"], output.shape[-1], dim=-1)

    return term
