"""Mean and variance of vectors that come in batches, without storing them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RunningStatistics:
    """Count, mean and sum of squared deviations of all samples so far, coordinate by coordinate.

    A value: `with_samples` gives a new one. Batches may come in any size and order; the result is
    that of all samples together, up to rounding.

    Attributes:
        count: Number of samples.
        mean: Float[Tensor, "d"], float64.
        squares: Float[Tensor, "d"], sum of squared deviations from the mean, float64.

    Example:
        >>> one = RunningStatistics.empty(1).with_samples(torch.tensor([[1.0], [3.0]]))
        >>> one.mean.item(), round(one.std.item(), 4)
        (2.0, 1.4142)
    """

    count: int
    mean: Float[Tensor, " d"]
    squares: Float[Tensor, " d"]

    @classmethod
    def empty(cls, width: int) -> RunningStatistics:
        """Return the statistics of no samples."""
        zeros = torch.zeros(width, dtype=torch.float64)
        return cls(0, zeros, zeros)

    def with_samples(
        self, samples: Float[Tensor, "n d"], *, unbiased_squares: bool = False
    ) -> RunningStatistics:
        """Return the statistics with these samples added.

        Args:
            samples: One a row; they are moved to the CPU.
            unbiased_squares: Add `n var` instead of `(n - 1) var` for the spread within the batch,
                var being the unbiased variance, as the public code of MALMEN and UltraEdit does. It
                counts one variance too many a batch.

        Reference: Chan, Golub, LeVeque (1979), pairwise update of mean and variance.
        """
        new = samples.detach().cpu().double()
        n = len(new)
        if n == 0:
            return self
        count, own = self.count + n, new.mean(0)
        within = (new - own).square().sum(0)
        if unbiased_squares and n > 1:
            within = within * (n / (n - 1))
        shift = own - self.mean
        return RunningStatistics(
            count,
            self.mean + shift * (n / count),
            self.squares + within + shift.square() * (self.count * n / count),
        )

    @property
    def std(self) -> Float[Tensor, " d"]:
        """Unbiased standard deviation; zeros while there are fewer than two samples."""
        return (self.squares / max(1, self.count - 1)).sqrt()

    def tensors(self) -> dict[str, Tensor]:
        """Return what `from_tensors` needs to continue."""
        count = torch.tensor(self.count, dtype=torch.int64)
        return {"count": count, "mean": self.mean, "squares": self.squares}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> RunningStatistics:
        """Restore statistics from `tensors`, to the bit."""
        return cls(int(tensors["count"]), tensors["mean"], tensors["squares"])
