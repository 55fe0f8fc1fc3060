"""Exact search for the stored vector that is nearest to each query."""

from __future__ import annotations

# Parts of torch have no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corrigenda.linalg.row_buffer import RowBuffer

_QUERIES_AT_ONCE = 64
_NUMBERS_AT_ONCE = 1 << 24
# Unit round-off of a product in a float32 matrix product, by torch.get_float32_matmul_precision().
_ROUND_OFF = {"highest": 2.0**-24, "high": 2.0**-11, "medium": 2.0**-8}


class NearestVectors(NamedTuple):
    """Nearest stored vector of each query.

    Attributes:
        distances: Euclidean, float64 on the CPU; infinite where nothing is stored.
        indices: Which vector, on the CPU; the lowest of several at the same distance.
    """

    distances: Float[Tensor, " queries"]
    indices: Int[Tensor, " queries"]


class NearestSearch:
    """Exact search by Euclidean distance among up to some hundred thousand vectors.

    One matrix product finds the vectors that can be nearest, whatever it lost to rounding, and
    their distances are then computed from differences. So a query equal to a stored vector has
    distance 0, and no result depends on who else is asked for.

    Example:
        >>> queries = torch.tensor([[0.0, 2.0, 0.0], [1.0, 1.0, 0.0]])
        >>> found = NearestSearch(torch.eye(3)).search(queries)
        >>> found.distances.tolist(), found.indices.tolist()
        ([1.0, 1.0], [1, 0])
    """

    def __init__(self, vectors: Float[Tensor, "n d"]) -> None:
        """Store a float32 copy of the vectors, on their device."""
        self._stored, self._lengths = RowBuffer(), RowBuffer()
        self._longest = 0.0
        self.extend(vectors)

    def extend(self, vectors: Float[Tensor, "n d"]) -> None:
        """Store further vectors; what is found is as if all had been given at once."""
        if not len(vectors):
            return
        vectors = vectors.float()
        if not len(self):
            # Activations share a large mean, whose square would drown the differences; the first
            # vector has it, and stays first.
            self._centre = vectors[0].clone()
        vectors = vectors - self._centre
        squares = vectors.square().sum(1)
        self._stored.append(vectors)
        self._lengths.append(squares)
        self._longest = max(self._longest, float(squares.max().sqrt()))

    def truncate(self, count: int) -> None:
        """Forget the vectors from some number on."""
        for buffer in (self._stored, self._lengths):
            buffer.remove(min(count, len(buffer)), len(buffer))

    def __len__(self) -> int:
        return len(self._stored)

    @property
    def _vectors(self) -> Float[Tensor, "n d"]:
        return self._stored.rows

    @property
    def _squares(self) -> Float[Tensor, " n"]:
        return self._lengths.rows

    @torch.no_grad()
    def search(self, queries: Float[Tensor, "queries d"]) -> NearestVectors:
        """Find the nearest vector for each query, on any device and of any float dtype."""
        if not len(self):
            count = len(queries)
            infinite = torch.full((count,), torch.inf, dtype=torch.float64)
            return NearestVectors(infinite, torch.full((count,), -1))
        queries = queries.to(self._vectors) - self._centre
        found = [self._search(part) for part in queries.split(_QUERIES_AT_ONCE)]
        return NearestVectors(
            torch.cat([one[0] for one in found]), torch.cat([one[1] for one in found])
        )

    def _search(self, queries: Float[Tensor, "queries d"]) -> NearestVectors:
        rough = self._squares - 2 * queries @ self._vectors.T
        lengths = queries.norm(dim=1, keepdim=True)
        lost = (queries.shape[1] + 2) * _ROUND_OFF[torch.get_float32_matmul_precision()]
        margin = 2 * lost * self._longest * (self._longest + 2 * lengths)
        rows, columns = (rough <= rough.amin(1, keepdim=True) + margin).nonzero(as_tuple=True)
        distances = torch.cat(
            [
                _measure_lengths(queries[own] - self._vectors[others])
                for own, others in zip(
                    rows.split(_count_pairs_at_once(queries)),
                    columns.split(_count_pairs_at_once(queries)),
                    strict=True,
                )
            ]
        )
        rows, columns = rows.cpu(), columns.cpu()
        least = torch.full((len(queries),), torch.inf, dtype=torch.float64)
        least = least.scatter_reduce(0, rows, distances, "amin")
        best = distances == least[rows]
        first = torch.full((len(queries),), len(self))
        return NearestVectors(least, first.scatter_reduce(0, rows[best], columns[best], "amin"))


def _count_pairs_at_once(queries: Tensor) -> int:
    return max(1, _NUMBERS_AT_ONCE // queries.shape[1])


def _measure_lengths(differences: Float[Tensor, "pairs d"]) -> Float[Tensor, " pairs"]:
    if differences.device.type == "mps":
        return differences.norm(dim=1).cpu().double()
    return differences.double().norm(dim=1).cpu()
