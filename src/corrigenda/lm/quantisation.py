"""Names for ways to quantise a model as it is loaded, so that no object has to be built."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from corrigenda.errors import BadConfig, MissingExtra, QuantisedWeights, did_you_mean

_PACKS = "support_avx512bf16_for_cpu"


def _bitsandbytes(bits: int) -> object:
    importlib.import_module("bitsandbytes")
    settings = importlib.import_module("transformers").BitsAndBytesConfig
    return settings(load_in_4bit=bits == 4, load_in_8bit=bits == 8)


def _torchao() -> object:
    kind = importlib.import_module("torchao.quantization").Int8WeightOnlyConfig
    return importlib.import_module("transformers").TorchAoConfig(kind())


def _quanto(bits: int) -> object:
    importlib.import_module("optimum.quanto")
    return importlib.import_module("transformers").QuantoConfig(weights=f"int{bits}")


_MAKERS: Mapping[str, tuple[str, Callable[[], object]]] = MappingProxyType(
    {
        "4bit": ("bitsandbytes", lambda: _bitsandbytes(4)),
        "8bit": ("bitsandbytes", lambda: _bitsandbytes(8)),
        "torchao-int8": ("torchao", _torchao),
        "quanto-int8": ("optimum-quanto", lambda: _quanto(8)),
        "quanto-int4": ("optimum-quanto", lambda: _quanto(4)),
    }
)

QUANTISATIONS: tuple[str, ...] = tuple(_MAKERS)
"""Names of ways to quantise; checkpoints of GPTQ, AWQ and the like need none: they say it."""


def keep_readable(model: nn.Module, name: str) -> None:
    """Keep bitsandbytes from packing 4-bit weights anew for some CPUs in their first pass.

    Reading its state dict, from which digests are taken, is to undo that and does not: the weights
    are others afterwards (bitsandbytes 0.50).

    Raises:
        QuantisedWeights (CG304): they are packed already.
    """
    for path, module in model.named_modules():
        if hasattr(module, _PACKS):
            setattr(module, _PACKS, False)
            quantised = getattr(getattr(module, "weight", None), "quant_state", None)
            if getattr(quantised, "packing_format_for_cpu", False):
                raise QuantisedWeights(
                    "the weights were packed for this processor in the model's first pass, in a "
                    "form that cannot be read back.",
                    where=f"{name}, module {path}",
                    hint="Load the model with cg.load, or wrap it before it computes anything.",
                )


def quantisation_config(name: str) -> object:
    """Return the configuration of transformers for a name of `QUANTISATIONS`.

    Raises:
        BadConfig (CG502): no such name.
        MissingExtra (CG504): its package is not installed.
    """
    if name not in _MAKERS:
        raise BadConfig(
            f'no quantisation "{name}".',
            hint=did_you_mean(name, QUANTISATIONS) + f" Known: {', '.join(QUANTISATIONS)}.",
        )
    package, make = _MAKERS[name]
    try:
        return make()
    except (ImportError, ValueError) as error:
        raise MissingExtra(
            f"the quantisation {name} needs the package {package}.",
            where=str(error),
            hint=f"pip install {package}",
        ) from error
