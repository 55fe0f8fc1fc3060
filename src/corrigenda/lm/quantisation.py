"""Names for ways to quantise a model as it is loaded, so that no object has to be built."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

from corrigenda.errors import BadConfig, MissingExtra, did_you_mean


def _bitsandbytes(bits: int) -> object:
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


def quantisation_config(name: str) -> object:
    """Return the configuration of transformers for a name of `QUANTISATIONS`.

    Raises:
        BadConfig (CG502): no such name.
        MissingExtra (CG504): its package is not installed.
    """
    if name not in _MAKERS:
        raise BadConfig(f'no quantisation "{name}".', hint=did_you_mean(name, QUANTISATIONS))
    package, make = _MAKERS[name]
    try:
        return make()
    except ImportError as error:
        raise MissingExtra(
            f"the quantisation {name} needs the package {package}.",
            where=str(error),
            hint=f"pip install {package}",
        ) from error
