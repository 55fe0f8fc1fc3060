"""Standardising what a network reads by everything it has read in training."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from corrigenda.linalg.running import RunningStatistics

_EPSILON = 1e-7


class RunningNorm(nn.Module):
    """Count, mean and spread of each coordinate of all rows read in training, float64 buffers.

    They are part of the state dictionary, so they are kept, and go on after a resumption, with the
    network. Rows may come in pieces of any size, one at a time as well.
    """

    def __init__(self, width: int) -> None:
        """Start with nothing read."""
        super().__init__()
        for name, tensor in RunningStatistics.empty(width).tensors().items():
            self.register_buffer(name, tensor.clone())

    @property
    def statistics(self) -> RunningStatistics:
        """Of everything read, on the CPU."""
        names = ("count", "mean", "squares")
        return RunningStatistics.from_tensors({name: self.get_buffer(name).cpu() for name in names})

    @torch.no_grad()
    def see(self, rows: Float[Tensor, "n d"]) -> None:
        """Take rows into the statistics."""
        for name, tensor in self.statistics.with_samples(rows).tensors().items():
            self.get_buffer(name).copy_(tensor)

    def forward(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The rows less the mean, in units of the standard deviation; float64."""
        seen = self.statistics
        rows = rows.double()
        return (rows - seen.mean.to(rows.device)) / (seen.std.to(rows.device) + _EPSILON)
