"""Running second moments of keys: one pass, any batch size, mergeable."""

from __future__ import annotations

# Parts of torch have no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.errors import BadConfig, EmptyCorpus, IllConditioned, NonFinite
from corrigenda.linalg.cholesky import Cholesky

# Letters: k key (d_in) - S sum of k k^T - N number of keys - C = S / N

_FLUSH_EVERY = 50_000
_SMALLEST_BLOCK = 256


class SecondMoment:
    """Uncentred second moment of keys, C = E[k k^T], accumulated in one pass.

    Products of float64 keys are summed in float64. Products of other keys are formed in float32,
    summed in float32 for at most 50,000 keys and then added to the float64 sum, which keeps the
    error of long sums near that of one product. Only one triangle is computed.

    On a GPU the float32 sum is there, and the float64 sum in the host's memory.

    Two moments over disjoint texts add up (`+`) to the moment over both.

    Attributes:
        count: N, the number of keys seen.
        largest: Largest absolute value of each coordinate, float64.

    Reference: ROME (Meng et al. 2022), appendix E.5; there a plain float32 sum.
    """

    def __init__(self, width: int, *, device: torch.device | str = "cpu") -> None:
        """Start with no keys.

        Args:
            width: d_in.
            device: Where products are formed and where `covariance` is; it must know float64.
        """
        self.count = 0
        self.largest = torch.zeros(width, dtype=torch.float64, device=device)
        self._sum = torch.zeros(width, dtype=torch.float64, device=device)
        self._upper = torch.zeros(width, width, dtype=torch.float64, device=_host(device))
        self._chunk: Tensor | None = None
        self._chunk_count = 0

    @property
    def width(self) -> int:
        """Width d_in of the keys."""
        return self._sum.shape[0]

    @property
    def keys_per_dimension(self) -> float:
        """N / d_in; below 2 the moment needs shrinkage, 10 is a quick fit."""
        return self.count / self.width

    def update(self, keys: Float[Tensor, "n d_in"]) -> None:
        """Add keys, one a row; padding must have been dropped.

        Raises:
            NonFinite (CG201): a key holds infinities or NaN; nothing was added.
        """
        keys = keys.detach().to(self._sum.device)
        if keys.dtype not in (torch.float32, torch.float64):
            keys = keys.float()
        if keys.shape[0] == 0:
            return
        highest = torch.maximum(keys.amax(dim=0), -keys.amin(dim=0))
        if not bool(torch.isfinite(highest).all()):
            raise NonFinite(
                "a key holds infinities or NaN.",
                where=f"after {self.count} keys",
                hint="Run the model in float32 or bfloat16; float16 activations can overflow.",
            )
        if keys.dtype == torch.float64:
            _add_upper(self._upper, keys.to(self._upper.device))
        else:
            if self._chunk is None:
                self._chunk = torch.zeros(self.width, self.width, device=self._sum.device)
            with _full_float32():
                _add_upper(self._chunk, keys)
            self._chunk_count += keys.shape[0]
            if self._chunk_count >= _FLUSH_EVERY:
                self._flush()
        self._sum += keys.sum(dim=0).double()
        self.largest = torch.maximum(self.largest, highest.double())
        self.count += keys.shape[0]

    def merge(self, other: SecondMoment) -> SecondMoment:
        """Return the moment over the keys of both; neither is changed."""
        if self.width != other.width:
            raise ValueError(f"cannot merge moments of width {self.width} and {other.width}")
        merged = SecondMoment(self.width, device=self._sum.device)
        for part in (self, other):
            part._flush()
            merged._upper += part._upper.to(merged._upper.device)
            merged._sum += part._sum.to(merged._sum.device)
            merged.largest = torch.maximum(merged.largest, part.largest.to(merged.largest.device))
            merged.count += part.count
        return merged

    __add__ = merge

    @property
    def mean(self) -> Float[Tensor, " d_in"]:
        """Mean key, float64."""
        self._require_keys()
        return self._sum / self.count

    def covariance(self, shrinkage: float = 0.0) -> Float[Tensor, "d_in d_in"]:
        """Return C = S / N, uncentred and symmetric, float64.

        Args:
            shrinkage: rho in [0, 1]; the answer is (1 - rho) C + rho (tr C / d_in) I.

        Raises:
            EmptyCorpus (CG602): no keys were seen.
            BadConfig (CG502): shrinkage outside [0, 1].
        """
        self._require_keys()
        if not 0.0 <= shrinkage <= 1.0:
            raise BadConfig(f"shrinkage must lie in [0, 1], got {shrinkage}.")
        self._flush()
        moment = (self._upper.to(self._sum.device) / self.count).triu_()
        moment += moment.triu(1).T
        if shrinkage:
            mean = moment.diagonal().mean()
            moment *= 1 - shrinkage
            moment.diagonal().add_(shrinkage * mean)
        return moment

    def cholesky(self, shrinkage: float = 0.0, *, where: str = "") -> Cholesky:
        """Return the factor of `covariance(shrinkage)` that the solvers reuse.

        Raises:
            IllConditioned (CG203): fewer than 2 d_in keys and no shrinkage, or no factor exists.
        """
        if self.count < 2 * self.width and shrinkage == 0.0:
            raise IllConditioned(
                f"{self.count} keys are too few for a second moment of width {self.width}.",
                where=where,
                hint=f"Fit on at least {2 * self.width} tokens, or ask for shrinkage "
                "(for example 0.01).",
            )
        return Cholesky.of(self.covariance(shrinkage), where=where)

    def tensors(self) -> dict[str, Tensor]:
        """Return what `from_tensors` needs to continue: sums, not means; CPU."""
        self._flush()
        return {
            "sum_of_products": self._upper.triu().cpu(),
            "sum": self._sum.cpu().clone(),
            "largest": self.largest.cpu().clone(),
            "count": torch.tensor(self.count, dtype=torch.int64),
        }

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], *, device: torch.device | str = "cpu"
    ) -> SecondMoment:
        """Restore a moment from `tensors`, to the bit."""
        moment = cls(tensors["sum"].shape[0], device=device)
        moment._upper = tensors["sum_of_products"].to(_host(device), torch.float64, copy=True)
        moment._sum = tensors["sum"].to(device, torch.float64, copy=True)
        moment.largest = tensors["largest"].to(device, torch.float64, copy=True)
        moment.count = int(tensors["count"])
        return moment

    def _require_keys(self) -> None:
        if self.count == 0:
            raise EmptyCorpus("no keys were seen.", hint="Give text with at least one token.")

    def _flush(self) -> None:
        if self._chunk is not None and self._chunk_count:
            self._upper += self._chunk.to(self._upper.device)
            self._chunk.zero_()
            self._chunk_count = 0


def _host(device: torch.device | str) -> torch.device:
    """Return where the float64 sum of products is kept: in the host's memory."""
    device = torch.device(device)
    return device if device.type == "meta" else torch.device("cpu")


def _add_upper(target: Tensor, keys: Tensor) -> None:
    """Add X^T X to the upper triangle, block row by block row (half the work of a full product)."""
    width = target.shape[0]
    block = max(_SMALLEST_BLOCK, -(-width // 8))
    for start in range(0, width, block):
        stop = min(start + block, width)
        # Not `addmm_`, which may add row by row into the long sum and so lose digits.
        target[start:stop, start:] += keys[:, start:stop].T @ keys[:, start:]


@contextmanager
def _full_float32() -> Generator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
