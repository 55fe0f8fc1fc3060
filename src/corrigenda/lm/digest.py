"""A hash of what a model computes with: its weights, their dtypes, and its configuration."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

# Names and versions, and settings that the weights or the caller decide.
_IGNORED = frozenset(
    {
        "_name_or_path",
        "architectures",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "id2label",
        "label2id",
        "problem_type",
    }
)

_WORD = 8
_BLOCK = 512


class TensorDigests:
    """Hashes of a model's tensors, kept for as long as the tensors hold the same bits.

    A tensor is hashed again when its memory, layout or version counter differs from when it was
    hashed, or the sums of its bits do. The sums are there because a write through `.data` or NumPy
    does not count as a version; they see every such write but one that exchanges numbers within 512
    bytes, and cost a twentieth of the hash.
    """

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._known: dict[str, _Known] = {}

    def digest(self, model: PreTrainedModel, *, fresh: bool) -> str:
        """Return a hash that changes when any bit of any weight, a dtype or the configuration does.

        The name and path of the model do not count, nor buffers that are computed from the
        configuration.

        Args:
            model: The model whose tensors are remembered here.
            fresh: Hash every tensor, changed or not.

        Returns:
            64 hexadecimal digits (BLAKE2b over the hashes of the tensors, in the order of their
            names).
        """
        tensors = dict(sorted(_list_stored(model.state_dict(keep_vars=True))))
        stamps = {name: _stamp(tensor) for name, tensor in tensors.items()}
        # Tensors that share their memory (tied embeddings) are read once.
        places = {stamp: tensors[name] for name, stamp in stamps.items()}
        sums = dict(zip(places, _sum_bits(list(places.values())), strict=True))
        states = {name: _State(stamp, sums[stamp]) for name, stamp in stamps.items()}
        kept = {} if fresh else {one.state: one.hash for one in self._known.values()}
        missing = {
            state.stamp: tensors[name] for name, state in states.items() if state not in kept
        }
        with ThreadPoolExecutor(max_workers=max(1, torch.get_num_threads())) as pool:
            new = dict(zip(missing, pool.map(hash_tensor, missing.values()), strict=True))
        self._known = {
            name: _Known(state, new[state.stamp] if state.stamp in new else kept[state])
            for name, state in states.items()
        }
        total = hashlib.blake2b(_config(model).encode(), digest_size=32)
        for name, one in self._known.items():
            total.update(name.encode() + b"\0" + one.hash)
        return total.hexdigest()


def digest(model: PreTrainedModel) -> str:
    """Return the hash of a model, see `TensorDigests.digest`, with nothing remembered."""
    return TensorDigests().digest(model, fresh=True)


class _State(NamedTuple):
    """Where and how a tensor lies in memory with its version counter, and the sum of its bits."""

    stamp: tuple[object, ...]
    total: int


class _Known(NamedTuple):
    """The hash of a tensor, and the state in which it was taken."""

    state: _State
    hash: bytes


def hash_tensor(tensor: Tensor) -> bytes:
    """Return the BLAKE2b hash of dtype, shape and bytes of a tensor, 32 bytes long."""
    header = f"{tensor.dtype} {tuple(tensor.shape)} "
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    value = hashlib.blake2b(header.encode(), digest_size=32)
    value.update(raw.numpy().data)
    return value.digest()


def _list_stored(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """List tensors by name; of those that are made of others (quantised ones) list the others."""
    for name, tensor in tensors.items():
        flatten = getattr(tensor, "__tensor_flatten__", None)
        if flatten is None:
            yield name, tensor
        else:
            parts, _ = flatten()
            yield from _list_stored({f"{name}.{part}": getattr(tensor, part) for part in parts})


def _stamp(tensor: Tensor) -> tuple[object, ...]:
    version = 0 if tensor.is_inference() else tensor._version
    layout = (tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)
    return (tensor.data_ptr(), version, *layout)


def _sum_bits(tensors: Sequence[Tensor]) -> list[int]:
    """Sum the bits of each tensor as 64-bit integers, blocks weighted by their place."""
    sums = [_sum_of_blocks(tensor.detach()) for tensor in tensors]
    found: dict[int, int] = {}
    # One transfer for each device.
    for device in {one.device for one in sums}:
        own = [index for index, one in enumerate(sums) if one.device == device]
        found |= zip(own, torch.stack([sums[index] for index in own]).tolist(), strict=True)
    return [found[index] for index in range(len(sums))]


def _sum_of_blocks(tensor: Tensor) -> Int[Tensor, ""]:
    flat = tensor.contiguous().reshape(-1)
    if flat.storage_offset() * flat.element_size() % _WORD:
        flat = flat.clone()
    raw = flat.view(torch.uint8)
    end = raw.numel() // _BLOCK * _BLOCK
    blocks = raw[:end].view(torch.int64).view(-1, _BLOCK // _WORD).sum(dim=1)
    places = torch.arange(len(blocks), device=raw.device).mul_(2).add_(1)
    rest = raw[end:].long()
    ends = torch.arange(len(rest), device=raw.device).mul_(2).add_(2 * len(blocks) + 1)
    return (blocks * places).sum() + (rest * ends).sum()


def _config(model: PreTrainedModel) -> str:
    def drop_ignored(node: object) -> object:
        if isinstance(node, dict):
            return {
                str(name): drop_ignored(value)
                for name, value in node.items()
                if name not in _IGNORED and value is not None
            }
        return [drop_ignored(value) for value in node] if isinstance(node, (list, tuple)) else node

    return json.dumps(drop_ignored(model.config.to_dict()), sort_keys=True, default=str)
