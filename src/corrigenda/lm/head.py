"""From the residual stream to logits."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from corrigenda.lm.families import Family
from corrigenda.lm.placement import call_module


def logits_of(
    model: PreTrainedModel, family: Family, hidden: Float[Tensor, "*rows d_model"]
) -> Float[Tensor, "*rows vocab"]:
    """Apply final norm, head (bias included) and soft-capping to states after the last block.

    The result is on the device of `hidden`.
    """
    normed = call_module(model.get_submodule(family.final_norm), hidden)
    head = model.get_output_embeddings()
    assert head is not None, "a causal language model has a head"
    logits = call_module(head, normed)
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap
