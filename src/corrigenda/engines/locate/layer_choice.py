"""Choice of the block to edit where there is neither an option nor a preset."""

from __future__ import annotations

from collections.abc import Sequence

from corrigenda.lm.model import LanguageModel

_DEPTH = 6


def choose_layer(lm: LanguageModel) -> int:
    """Choose the block at a sixth of the depth; the model is not run.

    That is where published settings edit models of 28 blocks and more (block 5 of 28 in GPT-J, 5 of
    32 in Llama), and where real edits of small models were followed by other wordings without
    loss of neighbours: see `docs/first-edit.md`. It is never the last block, unless it is the only
    one.

    Reference: that causal traces do not predict the best block: Hase et al. 2023, "Does
        localization inform editing?".
    """
    return min(round(lm.num_layers / _DEPTH), max(lm.num_layers - 2, 0))


def describe_choice(lm: LanguageModel, layers: Sequence[int]) -> str:
    """Return the notice that these blocks were chosen for the caller, in one line."""
    first, last = min(layers), max(layers)
    blocks = f"block {last}" if first == last else f"blocks {first} to {last}"
    verb = "is edited, at" if first == last else "are edited, up to"
    return (
        f"No preset for {lm.name}: {blocks} of {lm.num_layers} {verb} a sixth of the depth. Give "
        "the layer to choose another."
    )
