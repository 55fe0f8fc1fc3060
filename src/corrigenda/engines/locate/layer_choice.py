"""Choice of the block to edit where there is neither an option nor a preset."""

from __future__ import annotations

from typing import NamedTuple

from corrigenda.lm.model import LanguageModel

_DEPTH = 6


class LayerChoice(NamedTuple):
    """The block chosen for a model.

    Attributes:
        layer: Index of the block, from 0; never the last one, unless it is the only one.
        message: The choice and its reason, in one sentence.
    """

    layer: int
    message: str


def choose_layer(lm: LanguageModel) -> LayerChoice:
    """Choose the block at a sixth of the depth; the model is not run.

    That is where published settings edit models of 28 blocks and more (block 5 of 28 in GPT-J, 5 of
    32 in Llama), and where edits of small models were followed by paraphrases without loss of
    neighbours. A causal trace is no better guide, see `docs/first-edit.md`.

    Reference: that traces do not predict the best block: Hase et al. 2023, "Does localization
        inform editing?".
    """
    layer = min(round(lm.num_layers / _DEPTH), max(lm.num_layers - 2, 0))
    return LayerChoice(
        layer,
        f"No preset for {lm.name}: block {layer} of {lm.num_layers} is edited, a sixth of the "
        "depth. Give the layer to choose another.",
    )
