"""The rule for models on several devices: the library computes where token ids go.

What is read at a point of the pass arrives on that device, what is put in goes to the device of the
tensor it meets, and a module that is called by itself is called where its weights are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

_COLUMNS_AT_ONCE = 1024


def run_on(
    device: torch.device, function: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Return a function that works on a device, whichever one its tensor comes from.

    Its result goes back; where the function returns the tensor it got, so does the new one.

    Example:
        >>> double = run_on(torch.device("cpu"), lambda tensor: 2 * tensor)
        >>> double(torch.ones(2)).tolist()
        [2.0, 2.0]
    """

    def run(tensor: Tensor) -> Tensor:
        moved = tensor.to(device)
        new = function(moved)
        return tensor if new is moved else new.to(tensor.device)

    return run


def call_module(module: nn.Module, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
    """Call a module on the device of its weights; the result is on the device of `x`.

    Example:
        >>> call_module(nn.LayerNorm(2), torch.zeros(1, 2)).tolist()
        [[0.0, 0.0]]
    """
    weight = next(module.parameters(), x)
    return module(x.to(weight.device)).to(x.device)


def multiply(
    x: Float[Tensor, "*rows d_out"], weight: Float[Tensor, "d_out d_in"]
) -> Float[Tensor, "*rows d_in"]:
    """Return x W, taken on the device of the weight in the dtype of `x`, on the device of `x`.

    A weight of another dtype is converted 1,024 columns at a time.

    Example:
        >>> multiply(torch.ones(1, 2), torch.eye(2)).tolist()
        [[1.0, 1.0]]
    """
    moved = x.to(weight.device)
    if weight.dtype == x.dtype:
        return (moved @ weight).to(x.device)
    parts = weight.split(_COLUMNS_AT_ONCE, dim=-1)
    return torch.cat([moved @ part.to(x.dtype) for part in parts], dim=-1).to(x.device)


class SharedTensors:
    """What is made of tensors for devices, once for each tensor and device.

    The tensors have to outlive it.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._made: dict[tuple[int, torch.device], Tensor] = {}

    def make(
        self, tensor: Tensor, device: torch.device, function: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return what the function makes of a tensor, on a device."""
        place = id(tensor), device
        if place not in self._made:
            self._made[place] = function(tensor).to(device)
        return self._made[place]
