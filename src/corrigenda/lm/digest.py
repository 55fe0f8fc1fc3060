"""A hash of what a model computes with: its weights, their dtypes, and its configuration."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import torch
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


def digest(model: PreTrainedModel) -> str:
    """Return a hash that changes when any bit of any weight, a dtype or the configuration changes.

    Nothing is remembered between calls: a change is seen however it was made. The name and path of
    the model do not count, nor buffers that are computed from the configuration.

    Returns:
        64 hexadecimal digits (BLAKE2b over the hashes of the tensors, in the order of their names).
    """
    tensors = sorted(model.state_dict(keep_vars=True).items())
    with ThreadPoolExecutor(max_workers=max(1, torch.get_num_threads())) as pool:
        hashes = list(pool.map(lambda item: _tensor(item[1]), tensors))
    total = hashlib.blake2b(_config(model).encode(), digest_size=32)
    for (name, _), value in zip(tensors, hashes, strict=True):
        total.update(name.encode() + b"\0" + value)
    return total.hexdigest()


def _tensor(tensor: Tensor) -> bytes:
    header = f"{tensor.dtype} {tuple(tensor.shape)} "
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    value = hashlib.blake2b(header.encode(), digest_size=32)
    value.update(raw.numpy().data)
    return value.digest()


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
