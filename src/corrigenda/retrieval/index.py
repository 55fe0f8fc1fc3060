"""Exact search for the stored vectors that have the largest inner products with a query."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

_STORED_AT_ONCE = 16_384
_QUERIES_AT_ONCE = 256
_LAST = 0xFFFF_FFFF
_SIGN_FLIP = 0x7FFF_FFFF


class Hits(NamedTuple):
    """Result of a search, best first.

    Attributes:
        scores: Inner products, float32.
        indices: Index of the stored vector, int64.
    """

    scores: Float[Tensor, "queries k"]
    indices: Int[Tensor, "queries k"]


class Index:
    """Stored vectors, up to a few million, searched exactly.

    Inner products are computed in float64, in chunks, and rounded to float32; among equal ones the
    lowest index comes first. The result therefore does not depend on the other queries of a call.

    Attributes:
        vectors: The stored vectors, one a row, as they were given.

    Example:
        >>> found = Index(torch.eye(3)).search(torch.tensor([[0.0, 2.0, 2.0]]), k=2)
        >>> found.scores.tolist(), found.indices.tolist()
        ([[2.0, 2.0]], [[1, 2]])
    """

    def __init__(self, vectors: Float[Tensor, "n d"]) -> None:
        """Index these vectors, on their device; they are not copied."""
        self.vectors = vectors

    def __len__(self) -> int:
        return len(self.vectors)

    @torch.no_grad()
    def search(self, queries: Float[Tensor, "queries d"], k: int) -> Hits:
        """Return the `k` best stored vectors for each query; fewer where fewer are stored.

        Args:
            queries: One a row, on any device and of any float dtype.
            k: How many, at least 1.
        """
        assert k >= 1, "at least one"
        device = self.vectors.device
        best: list[Tensor] = []
        for part in queries.to(device, torch.float64).split(_QUERIES_AT_ONCE):
            ranks = torch.empty(len(part), 0, dtype=torch.long, device=device)
            for start in range(0, len(self), _STORED_AT_ONCE):
                stored = self.vectors[start : start + _STORED_AT_ONCE].double()
                ranks = torch.cat([ranks, _ranks((part @ stored.T).float(), start)], dim=1)
                ranks = ranks.topk(min(k, ranks.shape[1]), dim=1).values
            best.append(ranks)
        found = torch.cat(best) if best else torch.empty(0, min(k, len(self)), dtype=torch.long)
        return Hits(_scores(found), _LAST - (found & _LAST))


def _ranks(scores: Float[Tensor, "queries n"], start: int) -> Int[Tensor, "queries n"]:
    """Return distinct integers in the order of the scores, lower indices first among equals.

    The bits of a float32, with those of negative numbers flipped, are ordered as the numbers are.
    """
    bits = (scores + 0.0).view(torch.int32).long()  # + 0.0 makes one zero of the two
    ordered = torch.where(bits < 0, bits ^ _SIGN_FLIP, bits)
    places = torch.arange(start, start + scores.shape[1], device=scores.device)
    return (ordered << 32) | (_LAST - places)


def _scores(ranks: Int[Tensor, "queries k"]) -> Float[Tensor, "queries k"]:
    ordered = ranks >> 32
    bits = torch.where(ordered < 0, ordered ^ _SIGN_FLIP, ordered)
    return bits.to(torch.int32).view(torch.float32)
