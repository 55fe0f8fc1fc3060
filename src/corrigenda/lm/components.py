"""A cached tail entered at two places of one block: after its attention and after its MLP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, Tokens, value
from corrigenda.lm.tail import Tail


@dataclass(eq=False)
class ComponentTail:
    """A block and those after it, from each row's start position on.

    The model's own block runs with both vectors added inside, so what the attention's does to the
    feed-forward block after it counts wherever there is such a way (not where the two are
    parallel), and norms after either are passed.

    Attributes:
        entry: Outputs of the two output projections at each row's start, attention's first, side
            by side.
    """

    entry: Float[Tensor, "batch d_entry"]
    _lm: LanguageModel
    _layer: int
    _tail: Tail

    @classmethod
    @torch.no_grad()
    def build(
        cls, lm: LanguageModel, tokens: Tokens, layer: int, starts: Int[Tensor, " batch"]
    ) -> ComponentTail:
        """Run the model once and keep what does not depend on the vectors.

        Args:
            lm: The model as it is now; later changes of it must not touch it while this is used.
            tokens: The batch. Rows sorted by length and start waste least.
            layer: The block at which the vectors enter.
            starts: The position in each row at which they enter; counted in columns of the batch.

        Raises:
            UnknownSite (CG303): no such layer, or a mixture of experts, which has no one down
                projection.
            ValueError: see `Tail.build`.
        """
        points = [value(Site(layer, "attn.out")), value(Site(layer))]
        seen = lm.tap(tokens, points, positions=starts)
        entry = torch.cat([seen[point] for point in points], dim=1)
        return cls(entry, lm, layer, Tail.build(lm, tokens, layer - 1, starts, role="state"))

    def run(
        self,
        delta: Float[Tensor, "rows d_entry"],
        at: Int[Tensor, "rows k"],
        rows: Int[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "rows k d_model"]:
        """Return hidden states, before the final norm, with both vectors added at each row's start.

        Args:
            delta: What to add, laid out as `entry`. Gradients flow to it and to nothing else.
            at: Positions to read, columns of the batch, at or after each row's start.
            rows: Which rows of the batch `delta` and `at` are for; by default all, in order.

        Raises:
            ValueError: a position before its row's start or after its last token.
        """
        attention, mlp = delta.chunk(2, dim=1)
        places = {
            value(Site(self._layer, "attn.out")): _adder(attention),
            value(Site(self._layer)): _adder(mlp),
        }
        with self._lm.swap(places):
            return self._tail.run(torch.zeros_like(mlp), at, rows=rows)


def _adder(delta: Float[Tensor, "rows d_model"]) -> Callable[[Tensor], Tensor]:
    def add(values: Tensor) -> Tensor:
        first = (values[:, :1] + delta[:, None]).to(values.dtype)
        return torch.cat([first, values[:, 1:]], dim=1)

    return add
