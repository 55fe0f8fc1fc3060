"""Activation function of a model's feed-forward blocks."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from transformers.activations import ACT2FN

from corrigenda.errors import BadConfig
from corrigenda.lm.model import LanguageModel

_NAMES = ("hidden_activation", "activation_function", "hidden_act")


def activation_of(lm: LanguageModel) -> Callable[[Tensor], Tensor]:
    """Return the activation function of the inner units of the model's feed-forward blocks.

    Raises:
        BadConfig (CG502): the model's configuration names none.
    """
    config = lm.model.config.get_text_config()
    for name in _NAMES:
        found = getattr(config, name, None)
        if isinstance(found, str):
            return ACT2FN[found]
    raise BadConfig(
        f"the configuration of {lm.name} names no activation function.",
        where=", ".join(_NAMES),
        hint="Choose an option that needs none.",
    )
