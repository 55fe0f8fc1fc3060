"""The three forms of a weight change: low-rank, dense, and some rows."""

from __future__ import annotations

# Parts of torch have no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corrigenda.linalg.lowrank import LowRank


@dataclass(frozen=True, eq=False)
class Dense:
    """Change of every entry of a weight.

    Attributes:
        delta: Float[Tensor, "d_out d_in"], added to the weight.
    """

    delta: Float[Tensor, "d_out d_in"]

    def __post_init__(self) -> None:
        if self.delta.ndim != 2:
            raise ValueError(f"a dense change is (d_out, d_in), got {tuple(self.delta.shape)}")

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return self.delta.shape[0], self.delta.shape[1]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dense) and same_tensors(tensors_of(self), tensors_of(other))

    __hash__ = None  # type: ignore[assignment]  # holds tensors, compared by content


@dataclass(frozen=True, eq=False)
class Rows:
    """Change of some output rows of a weight.

    Attributes:
        index: Which rows, each at most once.
        values: Float[Tensor, "rows d_in"], added to them.
        d_out: Number of rows of the weight.
    """

    index: Int[Tensor, " rows"]
    values: Float[Tensor, "rows d_in"]
    d_out: int

    def __post_init__(self) -> None:
        index = self.index.tolist()
        if self.values.ndim != 2 or len(index) != self.values.shape[0]:
            raise ValueError("rows need one index for each row of values")
        if len(set(index)) != len(index) or any(not 0 <= row < self.d_out for row in index):
            raise ValueError(f"row numbers must be distinct and below {self.d_out}")

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return self.d_out, self.values.shape[1]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and same_tensors(tensors_of(self), tensors_of(other))

    __hash__ = None  # type: ignore[assignment]  # holds tensors, compared by content


Change = LowRank | Dense | Rows
"""How one weight changes; shapes are (d_out, d_in) whatever the model's storage."""


CHANGE_FORMS: tuple[dict[str, str], ...] = (
    {"left": "float d_out rank", "right": "float d_in rank"},
    {"delta": "float d_out d_in"},
    {"index": "int rows", "values": "float rows d_in", "d_out": "int"},
)
"""Tensors of each form of change; see `corrigenda.patch.forms`."""


def tensors_of(change: Change) -> dict[str, Tensor]:
    """Return the tensors that make up a change, by the names used in files."""
    match change:
        case LowRank(left=left, right=right):
            return {"left": left, "right": right}
        case Dense(delta=delta):
            return {"delta": delta}
        case Rows(index=index, values=values, d_out=d_out):
            return {"index": index, "values": values, "d_out": torch.tensor(d_out)}


def change_from(tensors: Mapping[str, Tensor]) -> Change:
    """Return the change that tensors make up: the inverse of `tensors_of`.

    Raises:
        ValueError: the names are those of no change, or the shapes do not fit.
    """
    names = set(tensors)
    if names == {"left", "right"}:
        return LowRank(tensors["left"], tensors["right"])
    if names == {"delta"}:
        return Dense(tensors["delta"])
    if names == {"index", "values", "d_out"}:
        return Rows(tensors["index"], tensors["values"], int(tensors["d_out"]))
    raise ValueError(f"no kind of change has the tensors {', '.join(sorted(tensors))}")


def copy_to_cpu(change: Change) -> Change:
    """Return a copy on the CPU that shares no memory with the original."""
    return change_from({name: own_copy(tensor) for name, tensor in tensors_of(change).items()})


def own_copy(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU, without gradients, that can take part in gradients later."""
    with torch.inference_mode(False), torch.no_grad():
        return tensor.detach().to("cpu", copy=True).contiguous()


def dense(change: Change, dtype: torch.dtype = torch.float64) -> Float[Tensor, "d_out d_in"]:
    """Return the change as a full matrix."""
    full = torch.zeros(change.shape, dtype=dtype)
    add_to_weight(change, full)
    return full


def add_to_weight(change: Change, weight: Float[Tensor, "d_out d_in"]) -> None:
    """Add a change to a weight in place, in the dtype and on the device of the weight."""
    parts = {name: tensor.to(weight.device) for name, tensor in tensors_of(change).items()}
    match change:
        case LowRank():
            weight.addmm_(parts["left"].to(weight.dtype), parts["right"].to(weight.dtype).T)
        case Dense():
            weight += parts["delta"].to(weight.dtype)
        case Rows():
            weight.index_add_(0, parts["index"], parts["values"].to(weight.dtype))


def scale(change: Change, factor: float) -> Change:
    """Return the change times a number."""
    match change:
        case LowRank():
            return change.times(factor)
        case Dense(delta=delta):
            return Dense(delta * factor)
        case Rows(index=index, values=values, d_out=d_out):
            return Rows(index, values * factor, d_out)


def add(first: Change, second: Change) -> Change:
    """Return the sum in the most compact form that is exact: low-rank, then rows, then dense."""
    if first.shape != second.shape:
        raise ValueError(f"cannot add a change of {second.shape} to one of {first.shape}")
    match first, second:
        case LowRank(), LowRank():
            return first + second
        case Rows(), Rows():
            index = torch.cat([first.index, second.index]).unique()
            dtype = torch.promote_types(first.values.dtype, second.values.dtype)
            values = torch.zeros(len(index), first.shape[1], dtype=dtype)
            for part in (first, second):
                place = torch.searchsorted(index, part.index)
                values.index_add_(0, place, part.values.to(dtype))
            return Rows(index, values, first.d_out)
        case _:
            return Dense(dense(first) + dense(second))


def compact(delta: Float[Tensor, "d_out d_in"]) -> Change:
    """Return a full matrix in the smallest form that is exact to the bit.

    Low-rank where few columns are not zero (inputs that never fired), else rows, else dense. A zero
    matrix has rank 0, which a patch leaves out.
    """
    rows = delta.any(dim=1).nonzero().flatten()
    columns = delta.any(dim=0).nonzero().flatten()
    d_out, d_in = delta.shape
    if len(columns) * (d_out + d_in) <= len(rows) * d_in:
        right = torch.zeros(d_in, len(columns), dtype=delta.dtype, device=delta.device)
        right[columns, torch.arange(len(columns), device=delta.device)] = 1.0
        return LowRank(delta[:, columns], right)
    return Dense(delta) if len(rows) == d_out else Rows(rows, delta[rows], d_out)


def norm(change: Change) -> float:
    """Return the Frobenius norm."""
    match change:
        case LowRank():
            return change.norm()
        case Dense(delta=delta):
            return float(delta.double().norm())
        case Rows(values=values):
            return float(values.double().norm())


def num_parameters(change: Change) -> int:
    """Return how many numbers describe the change."""
    return sum(
        tensor.numel() for tensor in tensors_of(change).values() if tensor.is_floating_point()
    )


def same_tensors(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Return whether two sets of tensors agree in name, dtype, shape and every value."""
    return first.keys() == second.keys() and all(
        tensor.dtype == second[name].dtype and torch.equal(tensor, second[name])
        for name, tensor in first.items()
    )


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
