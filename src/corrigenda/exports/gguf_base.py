"""A GGUF file that a patch is meant for, read and compared with the model it was made on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from corrigenda.errors import CorruptFile, WrongBase
from corrigenda.exports.gguf_layout import require_gguf

if TYPE_CHECKING:
    import gguf
    from gguf.gguf_reader import ReaderTensor

# Four bits a weight leave a cosine of 0.99 and more, two bits some 0.9; other models 0.
_LEAST_COSINE = 0.8


class GgufBase:
    """A GGUF model on disk, mapped into memory.

    Attributes:
        path: The file.
        reader: Reader of the package `gguf`.
        tensors: Its tensors by name.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a file.

        Raises:
            CorruptFile (CG402): it is missing, or no GGUF file.
            MissingExtra (CG504): the package `gguf` is not installed.
        """
        require_gguf()
        import gguf

        self.path = Path(path)
        try:
            self.reader: gguf.GGUFReader = gguf.GGUFReader(self.path)
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise CorruptFile(
                f"{self.path} cannot be read as GGUF: {error}",
                hint="Give the model's .gguf file, downloaded whole.",
            ) from error
        self.tensors: Mapping[str, ReaderTensor] = {one.name: one for one in self.reader.tensors}

    def field(self, name: str) -> object:
        """Return the value of a metadata field; None where it is missing."""
        found = self.reader.get_field(name)
        return None if found is None else found.contents()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor as torch has it: rows first."""
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def dequantise(self, name: str) -> Tensor:
        """Return a tensor as float32."""
        import gguf

        found = self.tensors[name]
        values = gguf.quants.dequantize(found.data, found.tensor_type)
        return torch.from_numpy(np.array(values, dtype=np.float32)).reshape(self.shape(name))

    def require_architecture(self, architecture: str) -> None:
        """Refuse a file of another architecture, or one that is no model.

        Raises:
            WrongBase (CG401): it is another one.
        """
        kind, found = self.field("general.type") or "model", self.field("general.architecture")
        if kind != "model" or found != architecture:
            raise WrongBase(
                f"the file is of the kind {kind} and the architecture {found}, the patch is for a "
                f"model of {architecture}.",
                where=str(self.path),
            )

    def require_weight(self, name: str, weight: Tensor) -> float:
        """Refuse a file without a weight like the model's; return the cosine of the two.

        Args:
            name: Name of the tensor.
            weight: The unedited weight in the order of GGUF.

        Raises:
            WrongBase (CG401): it is missing, or has another shape or other values.
        """
        if name not in self.tensors:
            raise WrongBase(
                f"the file holds no tensor {name}.",
                where=str(self.path),
                hint="It is a model of another size or architecture.",
            )
        if self.shape(name) != tuple(weight.shape):
            raise WrongBase(
                f"{name} has shape {self.shape(name)} in the file, {tuple(weight.shape)} in the "
                "model the patch was made on.",
                where=str(self.path),
                hint="It is a model of another size.",
            )
        cosine = float(
            torch.nn.functional.cosine_similarity(
                self.dequantise(name).double().flatten(), weight.double().flatten(), dim=0
            )
        )
        if cosine < _LEAST_COSINE:
            raise WrongBase(
                f"{name} in the file is not the weight that the patch changes "
                f"(cosine {cosine:.2f}).",
                where=str(self.path),
                hint="Give the GGUF file of the very model the patch was made on.",
            )
        return cosine
