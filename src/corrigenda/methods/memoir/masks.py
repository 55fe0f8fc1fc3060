"""MEMOIR's masks: which inputs of the layer a prompt may use, and which stored mask suits it."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

_BITS = 8


def choose_permutation(width: int, seed: int) -> Int[Tensor, " d_in"]:
    """Return a fixed random permutation of the inputs."""
    return torch.randperm(width, generator=torch.Generator().manual_seed(seed))


def mask_features(
    features: Float[Tensor, "n d_in"], permutation: Int[Tensor, " d_in"], active: int
) -> Bool[Tensor, "n d_in"]:
    """Return the mask of each feature: its `active` largest entries by size, permuted.

    Args:
        features: Mean inputs over the tokens of prompts, less their mean over ordinary text.
        permutation: Of the inputs.
        active: How many inputs a prompt may use, k.

    Example:
        >>> turned = torch.tensor([1, 2, 0])
        >>> mask_features(torch.tensor([[0.1, -3.0, 2.0]]), turned, 1).tolist()
        [[False, False, True]]

    Reference: Wang et al. 2025, TopHash.
    """
    largest = features.abs().topk(active, dim=1).indices
    masks = torch.zeros(features.shape, dtype=torch.bool, device=features.device)
    return masks.scatter(1, permutation.to(largest.device)[largest], True)


def pack_masks(masks: Bool[Tensor, "n d_in"]) -> UInt8[Tensor, "n bytes"]:
    """Return masks with eight inputs a byte."""
    n, width = masks.shape
    padded = torch.zeros(n, -(-width // _BITS) * _BITS, dtype=torch.uint8, device=masks.device)
    padded[:, :width] = masks
    weights = 1 << torch.arange(_BITS, device=masks.device, dtype=torch.uint8)
    return (padded.view(n, -1, _BITS) * weights).sum(dim=2).to(torch.uint8)


def unpack_masks(packed: UInt8[Tensor, "n bytes"], width: int) -> Bool[Tensor, "n d_in"]:
    """Return masks from what `pack_masks` made of them."""
    weights = 1 << torch.arange(_BITS, device=packed.device, dtype=torch.uint8)
    return (packed[..., None] & weights).bool().flatten(1)[:, :width]


def find_mask(
    masks: Bool[Tensor, "n d_in"],
    stored: Float[Tensor, "entries d_in"],
    active: int,
    threshold: float,
) -> Int[Tensor, " n"]:
    """Return the stored mask that shares most inputs with each mask; -1 below the threshold.

    Args:
        masks: Of the prompts.
        stored: Of the edits, as zeros and ones.
        active: Inputs of a mask, k.
        threshold: Least share of inputs in common, tau. Of several the last counts.
    """
    common = masks.to(stored) @ stored.T
    # The last of equal ones: a later edit of a prompt takes the place of an earlier one.
    best = common.flip(1).max(dim=1)
    last = stored.shape[0] - 1 - best.indices
    return torch.where(best.values >= threshold * active, last, -1)
