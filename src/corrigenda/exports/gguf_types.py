"""Types of weights in GGUF files, quantised by the package `gguf` itself."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.exports.gguf_layout import require_gguf

if TYPE_CHECKING:
    import gguf


class WeightType(StrEnum):
    """Type in which weights are written: those that the package `gguf` can quantise to."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q5_1 = "q5_1"
    Q5_0 = "q5_0"
    Q4_1 = "q4_1"
    Q4_0 = "q4_0"

    @property
    def ggml(self) -> gguf.GGMLQuantizationType:
        """The type as `gguf` names it."""
        import gguf

        return gguf.GGMLQuantizationType[self.name]

    def fits(self, width: int) -> bool:
        """Return whether rows of this width can have the type: they are split into blocks."""
        import gguf

        return width % gguf.GGML_QUANT_SIZES[self.ggml][0] == 0


def weight_type_of(kind: gguf.GGMLQuantizationType) -> WeightType | None:
    """Return a type of a file as one that can be written; None where `gguf` only reads it."""
    name = kind.name.lower()
    return WeightType(name) if name in list(WeightType) else None


def quantise(weight: Float[Tensor, "*rows d_in"], kind: WeightType) -> np.ndarray:
    """Return a weight in a type, as the bytes or numbers that a GGUF file holds.

    Raises:
        MissingExtra (CG504): the package `gguf` is not installed.
    """
    require_gguf()
    import gguf

    values = weight.detach().cpu().float().contiguous().numpy()
    return gguf.quants.quantize(values, kind.ggml)


def round_trip(
    weight: Float[Tensor, "*rows d_in"], kind: WeightType
) -> Float[Tensor, "*rows d_in"]:
    """Return a weight quantised and dequantised again, in float32.

    Rows that cannot be split into the blocks of the type are rounded to float16, as llama.cpp does.
    """
    require_gguf()
    import gguf

    kind = kind if kind.fits(weight.shape[-1]) else WeightType.F16
    values = gguf.quants.dequantize(quantise(weight, kind), kind.ggml)
    return torch.from_numpy(np.array(values, dtype=np.float32)).reshape(weight.shape)
