"""Linear modules that store weights as 8-bit integers, and models made of them, for tests.

```python
from corrigenda.testing.quantised import quantise

def test_my_method(lm):
    quantised = quantise(lm)
    patch = MyEditor().edit(quantised, facts).patch
```
"""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import PARTS, Site
from corrigenda.lm.storage import is_transposed

_LARGEST = 127


class Int8Linear(nn.Linear):
    """Linear module with 8-bit integers for weights and one scale a row, as bitsandbytes has.

    Gradients flow to its input only.

    Example:
        >>> module = Int8Linear(nn.Linear(2, 3))
        >>> module.weight.dtype, module(torch.zeros(1, 2)).shape
        (torch.int8, torch.Size([1, 3]))
    """

    def __init__(self, module: nn.Module) -> None:
        """Round the weight of a linear module, whose bias is kept."""
        nn.Module.__init__(self)
        weight = module.get_parameter("weight").detach()
        weight = weight.T if is_transposed(module) else weight
        self.out_features, self.in_features = weight.shape
        scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / _LARGEST
        self._store((weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_parameter("bias", getattr(module, "bias", None))

    def _store(self, numbers: Tensor) -> None:
        self.weight = nn.Parameter(numbers, requires_grad=False)

    def numbers(self) -> Float[Tensor, "d_out d_in"]:
        """Return the weight that it computes with."""
        return self.weight * self.get_buffer("scale")

    def forward(self, input: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        """Return x W^T + b."""
        return linear(input, self.numbers().to(input.dtype), self.bias)


class PackedLinear(Int8Linear):
    """The same without a parameter called `weight`, as GPTQ and AWQ have it."""

    def _store(self, numbers: Tensor) -> None:
        self.register_buffer("qweight", numbers)

    def numbers(self) -> Float[Tensor, "d_out d_in"]:
        """Return the weight that it computes with."""
        return self.get_buffer("qweight") * self.get_buffer("scale")


def quantise(lm: LanguageModel, kind: type[Int8Linear] = Int8Linear) -> LanguageModel:
    """Return a copy of a dense model, of the same name, with all linear modules quantised."""
    model = copy.deepcopy(lm.model)
    own = LanguageModel(model, lm.tokenizer, name=lm.name, family=lm.family)
    sites = [Site(layer, part) for layer in range(own.num_layers) for part in PARTS]
    paths = {own.module_path(site) for site in sites if site.part in lm.family.slots}
    for path in sorted(paths):
        model.set_submodule(path, kind(model.get_submodule(path)))
    return LanguageModel(model, lm.tokenizer, name=own.name, family=lm.family)
