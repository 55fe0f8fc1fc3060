"""NeuralDB's database: keys, residuals, and the gate that says which residual a token gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_NUMBERS_AT_ONCE = 1 << 24


class DatabaseRows(NamedTuple):
    """Rows of the database, one a fact.

    Attributes:
        keys: Input of the down projection at the subject's last token.
        residuals: What is added to the residual stream where the row is found.
        subjects: Number of the subject; rows of one subject have one residual, that of the last.
        tokens: The subject's last token.
    """

    keys: Float[Tensor, "n d_in"]
    residuals: Float[Tensor, "n d_model"]
    subjects: Int[Tensor, " n"]
    tokens: Int[Tensor, " n"]

    @classmethod
    def concatenate(cls, parts: Sequence[Mapping[str, Tensor]]) -> DatabaseRows:
        """Return the rows of several patches, in order."""
        return cls(*(torch.cat([part[name] for part in parts]) for name in cls._fields))


class Database:
    """All rows of the active patches, searched by cosine.

    Attributes:
        rows: The rows, in the order in which they became active.
        threshold: gamma: a row is found above this cosine.
        same_token: Whether only rows of the token itself are compared with it.
    """

    def __init__(
        self, rows: DatabaseRows, *, threshold: float, same_token: bool, device: torch.device
    ) -> None:
        """Prepare rows for search on a device."""
        self.rows, self.threshold, self.same_token = rows, threshold, same_token
        self._device = device

    @cached_property
    def _units(self) -> Float[Tensor, "n d_in"]:
        return torch.nn.functional.normalize(self.rows.keys.float(), dim=1).to(self._device)

    @cached_property
    def _residuals(self) -> Float[Tensor, "n d_model"]:
        last = {subject: row for row, subject in enumerate(self.rows.subjects.tolist())}
        used = torch.tensor([last[subject] for subject in self.rows.subjects.tolist()])
        return self.rows.residuals[used].to(self._device)

    @cached_property
    def _by_token(self) -> dict[int, Int[Tensor, " some"]]:
        """Rows by the subject's last token."""
        order = self.rows.tokens.argsort(stable=True)
        tokens, counts = self.rows.tokens[order].unique_consecutive(return_counts=True)
        parts = order.to(self._device).split(counts.tolist())
        return dict(zip(tokens.tolist(), parts, strict=True))

    @cached_property
    def _has_rows(self) -> Bool[Tensor, " tokens"]:
        """Whether any row ends in a token, by the token's number."""
        found = torch.zeros(int(self.rows.tokens.max()) + 1, dtype=torch.bool)
        found[self.rows.tokens] = True
        return found.to(self._device)

    def cosines(self, queries: Float[Tensor, "q d_in"]) -> Float[Tensor, " q"]:
        """Return each query's largest cosine with any row."""
        return self._nearest(queries)[0]

    def find(
        self, keys: Float[Tensor, "q d_in"], ids: Int[Tensor, " q"] | None
    ) -> Int[Tensor, " q"]:
        """Return the row that each token gets, -1 for none.

        Args:
            keys: Inputs of the down projection.
            ids: The tokens, where they are known; without them all rows are compared.
        """
        if not self.same_token or ids is None:
            cosines, rows = self._nearest(keys)
            return torch.where(cosines > self.threshold, rows, -1)
        found = torch.full((len(keys),), -1, device=self._device)
        ids = ids.to(self._device)
        known = ids < len(self._has_rows)
        known &= self._has_rows[ids.clamp_max(len(self._has_rows) - 1)]
        for place in known.nonzero().flatten().tolist():
            rows = self._by_token[int(ids[place])]
            cosines, nearest = self._nearest(keys[place : place + 1], rows)
            if cosines[0] > self.threshold:
                found[place] = rows[nearest[0]]
        return found

    def residuals(self, rows: Int[Tensor, " some"]) -> Float[Tensor, "some d_model"]:
        """Return what is added where these rows are found."""
        return self._residuals[rows]

    def _nearest(
        self, queries: Float[Tensor, "q d_in"], rows: Int[Tensor, " some"] | None = None
    ) -> tuple[Float[Tensor, " q"], Int[Tensor, " q"]]:
        units = self._units if rows is None else self._units[rows]
        queries = torch.nn.functional.normalize(queries.to(units), dim=1)
        best = [
            (part @ units.T).max(dim=1)
            for part in queries.split(max(1, _NUMBERS_AT_ONCE // len(units)))
        ]
        return torch.cat([one.values for one in best]), torch.cat([one.indices for one in best])
