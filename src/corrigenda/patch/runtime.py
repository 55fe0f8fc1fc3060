"""Weight changes added to the outputs of a model while it runs, without touching a weight."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.errors import WrongBase
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, key, value
from corrigenda.patch.changes import Change, Dense, Rows, tensors_of


def require_shapes(changes: Mapping[Site, Change], lm: LanguageModel) -> None:
    """Refuse changes that do not fit the weights of a model.

    Raises:
        WrongBase (CG401): a change has another shape than the weight.
        UnknownSite (CG303): the model has no such layer or part.
    """
    for site, change in changes.items():
        shape = _stored_shape(lm, site) if lm.is_quantised else tuple(lm.weight(site).shape)
        if shape != change.shape:
            raise WrongBase(
                f"the patch changes a weight of shape {change.shape}, the model's is {shape}.",
                where=f"site {site} of {lm.name}",
                hint="The patch was made for a model of another size.",
            )


def _stored_shape(lm: LanguageModel, site: Site) -> tuple[int, int]:
    """Shape of a packed weight, of which only the module still knows."""
    bias, sizes = lm.bias(site), vars(lm.module(site))
    d_out = sizes["out_features"] if bias is None else len(bias)
    return int(d_out), int(sizes["in_features"])


@contextmanager
def added_at_run_time(changes: Mapping[Site, Change], lm: LanguageModel) -> Generator[None]:
    """Hooks that add each change's output at its site, until left.

    Sums are formed in float32 (float64 where the model is), then rounded to the model's dtype.
    """
    with ExitStack() as stack:
        for site, change in changes.items():
            addition = _Addition(change)
            stack.enter_context(lm.swap({key(site): addition.remember, value(site): addition.add}))
        yield


class _Addition:
    """Carries a site's input from the key hook to the value hook of the same forward pass."""

    def __init__(self, change: Change) -> None:
        self._change = change
        self._input: Tensor | None = None
        self._placed: dict[
            tuple[torch.device, torch.dtype], Callable[[Tensor, Tensor], Tensor]
        ] = {}

    def remember(self, x: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        self._input = x
        return x

    def add(self, output: Float[Tensor, "batch pos d_out"]) -> Float[Tensor, "batch pos d_out"]:
        x, self._input = self._input, None
        assert x is not None, "the key hook runs before the value hook"
        dtype = torch.promote_types(output.dtype, torch.float32)
        place = (output.device, dtype)
        if place not in self._placed:
            self._placed[place] = _adder(self._change, *place)
        added = self._placed[place](x.to(output.device, dtype), output.to(dtype))
        return added.to(output.dtype)


def _adder(
    change: Change, device: torch.device, dtype: torch.dtype
) -> Callable[[Tensor, Tensor], Tensor]:
    parts = {
        name: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in tensors_of(change).items()
    }
    match change:
        case LowRank():
            return lambda x, output: output + (x @ parts["right"]) @ parts["left"].T
        case Dense():
            return lambda x, output: output + x @ parts["delta"].T
        case Rows():
            return lambda x, output: output.index_add(-1, parts["index"], x @ parts["values"].T)
