"""Changes of weights as factors by module, which is what adapters of other programs hold."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from corrigenda.errors import NotExportable
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.lm.storage import ALL_ROWS
from corrigenda.patch.changes import Change, Dense, Rows
from corrigenda.patch.ledger import ledger_of, require_base
from corrigenda.patch.runtime import require_shapes
from corrigenda.patch.weights import WeightPatch


def require_adapter(patch: WeightPatch, lm: LanguageModel) -> None:
    """Refuse a patch that no adapter of this model can hold.

    Raises:
        NotExportable (CG405): an empty patch, or one made on top of others.
        WrongBase (CG401): made on another model (unless it is active on this one by force), or of
            other shapes.
    """
    if patch.is_empty:
        raise NotExportable("an empty patch has no adapter.")
    if patch.header.prerequisites:
        raise NotExportable(
            "the patch was made on top of others, without which its adapter would mean nothing.",
            hint="Compose them first: (first + second) in the order they were made.",
        )
    ledger = ledger_of(lm)
    if not any(active == patch for active in ledger):
        require_base(patch.header, ledger.base(lm), lm)
    require_shapes(patch.changes, lm)


def factors_by_module(changes: Mapping[Site, Change], lm: LanguageModel) -> Mapping[str, LowRank]:
    """Return one low-rank change for each module, in the module's own (d_out, d_in).

    Raises:
        NotExportable (CG405): an expert's weight, or a dense change of full rank.
    """
    adapters: dict[str, LowRank] = {}
    for site, change in changes.items():
        if site.expert is not None:
            raise NotExportable(
                "weights of single experts have no module of their own.",
                where=f"site {site}",
                hint="Export a merged checkpoint instead.",
            )
        path = lm.module_path(site)
        whole = _widen_to_module(factorise(change, site), site, lm)
        adapters[path] = _add_changes(adapters[path], whole) if path in adapters else whole
    return adapters


def factorise(change: Change, site: Site) -> LowRank:
    """Return a change as factors: exact for low-rank and row changes, by SVD for dense ones.

    Raises:
        NotExportable (CG405): a dense change whose factors would be larger than itself.
    """
    match change:
        case LowRank():
            return change
        case Rows(index=index, values=values, d_out=d_out):
            left = torch.zeros(d_out, len(index), dtype=values.dtype)
            left[index, torch.arange(len(index))] = 1
            return LowRank(left, values.T)
        case Dense(delta=delta):
            u, s, vh = torch.linalg.svd(delta.double(), full_matrices=False)
            rank = int((s > s[0] * max(delta.shape) * torch.finfo(delta.dtype).eps).sum())
            if rank * sum(delta.shape) > delta.numel():
                raise NotExportable(
                    f"the dense change has rank {rank}; as factors it would be larger than itself.",
                    where=f"site {site}",
                    hint="Export a merged checkpoint instead, or keep the strongest directions "
                    "first (--transform compress:rank=8).",
                )
            return LowRank(u[:, :rank] * s[:rank], vh[:rank].T)


def pad_rank(change: LowRank, rank: int) -> LowRank:
    """Return the same matrix with `rank` columns, those added being zero.

    Example:
        >>> one = LowRank(torch.ones(2, 1), torch.ones(3, 1))
        >>> padded = pad_rank(one, 8)
        >>> padded.rank, torch.equal(padded.to_dense(), one.to_dense())
        (8, True)
    """
    missing = rank - change.rank
    return LowRank(
        *(torch.nn.functional.pad(part, (0, missing)) for part in (change.left, change.right))
    )


def _widen_to_module(change: LowRank, site: Site, lm: LanguageModel) -> LowRank:
    """Return the change of one site as one of its whole module, whose weight may be fused."""
    rows = lm.rows(site)
    if isinstance(rows, slice) and rows == ALL_ROWS:
        return change
    parts = [Site(site.layer, part) for part in lm.family.slots]
    shared = [one for one in parts if lm.module_path(one) == lm.module_path(site)]
    left = torch.zeros(
        sum(lm.shape(one)[0] for one in shared), change.rank, dtype=change.left.dtype
    )
    left[rows] = change.left
    return LowRank(left, change.right)


def _add_changes(first: LowRank, second: LowRank) -> LowRank:
    """Return the sum of changes of different rows of a module; equal `right` is stored once."""
    same = first.left.dtype == second.left.dtype and torch.equal(first.right, second.right)
    return LowRank(first.left + second.left, first.right) if same else first + second
