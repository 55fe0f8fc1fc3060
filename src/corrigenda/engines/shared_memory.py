"""Memories that the active patches of a method share: one codebook or database, one set of hooks.

Each patch is a value with entries of its own. The memory is built from the entries of all active
patches, in the order in which they became active; a patch that is applied adds to it, and one that
is reverted has it built again. Reverting a patch therefore also undoes what it did to the entries
of other patches.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.facts import Fact
from corrigenda.lm.hooks import TensorMap
from corrigenda.lm.kv_cache import batches, pad_id
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.session import session_of
from corrigenda.lm.sites import Point, Tokens
from corrigenda.lm.spans import encode, encode_fact

PatchKind = TypeVar("PatchKind")
MemoryKind = TypeVar("MemoryKind", bound="SharedMemory[Any]")

# Relative difference between the states of one prompt read in two batches.
_NOISE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.003}


class SharedMemory(ABC, Generic[PatchKind]):
    """Memory built from the active patches of one kind, with the hooks that use it.

    Attributes:
        lm: The model.
        patches: The active patches, in order.
        suspended: Whether the hooks do nothing, while another patch is trained.
        hooks: Removes the hooks from the model when closed.
    """

    def __init__(self, lm: LanguageModel) -> None:
        """Create a memory without patches."""
        self.lm = lm
        self.patches: list[PatchKind] = []
        self.suspended = False
        self.hooks = ExitStack()

    @abstractmethod
    def transforms(self) -> Mapping[Point, TensorMap]:
        """Return the hooks of the memory, by point of the forward pass."""

    @abstractmethod
    def forget(self) -> None:
        """Drop everything built from the patches, because one of them was taken out."""

    def extend(self, patch: PatchKind) -> None:
        """Bring what was built up to date after a patch became the last one."""
        self.forget()

    def drop(self, *names: str) -> None:
        """Drop cached properties, so that they are found anew."""
        for name in names:
            if name in self.__dict__:
                delattr(self, name)


def memory_of(lm: LanguageModel, kind: type[MemoryKind], group: Hashable) -> MemoryKind | None:
    """Return the memory of a group of patches on a model; None while none of them is active."""
    found = session_of(lm.model).memories.get(group)
    assert found is None or isinstance(found, kind), "a group has one kind of memory"
    return found


@contextmanager
def join(
    lm: LanguageModel,
    patch: PatchKind,
    group: Hashable,
    make: Callable[[], SharedMemory[PatchKind]],
) -> Generator[None]:
    """Add a patch to the memory of its group, until left.

    Args:
        lm: The model.
        patch: The patch that becomes active.
        group: What patches that share a memory have in common.
        make: Makes the memory where the group has none yet.
    """
    groups = session_of(lm.model).memories
    memory = groups.get(group)
    if memory is None:
        memory = make()
        with ExitStack() as stack:
            stack.enter_context(lm.prompt_ends.follow())
            stack.enter_context(lm.swap(memory.transforms()))
            memory.hooks = stack.pop_all()
        groups[group] = memory
    memory.patches.append(patch)
    memory.extend(patch)
    try:
        yield
    finally:
        # By identity: equal patches may be active twice.
        places = reversed(range(len(memory.patches)))
        del memory.patches[next(place for place in places if memory.patches[place] is patch)]
        memory.forget()
        if not memory.patches:
            del groups[group]
            memory.hooks.close()


@contextmanager
def suspend(memory: SharedMemory[PatchKind] | None) -> Generator[None]:
    """Run the model as if none of the memory's patches were active, until left."""
    if memory is None:
        yield
        return
    before, memory.suspended = memory.suspended, True
    try:
        yield
    finally:
        memory.suspended = before


def entry_id(key: Float[Tensor, " d"], target: Sequence[int]) -> int:
    """Return the number by which patches refer to an entry; equal for equal keys and targets."""
    content = key.cpu().contiguous().numpy().tobytes() + repr(tuple(target)).encode()
    return int.from_bytes(hashlib.sha256(content).digest()[:7], "big") + 1


def keys_at(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], point: Point
) -> Float[Tensor, "n d"]:
    """Return the tensor at a point at the last token of each prompt; float32, on the CPU."""
    found: dict[int, Tensor] = {}
    for batch in batches(lm, [len(ids) for ids in prompts], None):
        tokens = Tokens.pad([prompts[index] for index in batch], pad_id(lm)).to(lm.device)
        with lm.prompt_ends.mark(tokens.lengths - 1):
            taken = lm.tap(tokens, [point], positions=tokens.lengths - 1)[point]
        found |= dict(zip(batch, taken.float().cpu(), strict=True))
    return torch.stack([found[index] for index in range(len(prompts))])


def key_noise(lm: LanguageModel, keys: Float[Tensor, "n d"]) -> list[float]:
    """Return how far the key of each prompt may lie from itself when read in another batch."""
    return (_NOISE[lm.dtype] * keys.double().norm(dim=1)).tolist()


class KeyDistances(NamedTuple):
    """Distances between keys, from which a radius can be chosen.

    Attributes:
        paraphrases: From each prompt to each of its paraphrases.
        neighbours: From each prompt to each of its neighbours.
        others: From each prompt to the nearest prompt of another fact.
    """

    paraphrases: list[float]
    neighbours: list[float]
    others: list[float]


def key_distances(lm: LanguageModel, facts: Sequence[Fact], point: Point) -> KeyDistances:
    """Measure how far the keys of facts, their paraphrases and their neighbours lie apart.

    Args:
        lm: The model, as it is now.
        facts: The facts.
        point: Where keys are read.
    """
    own = keys_at(lm, [_encode_prompt(lm, fact) for fact in facts], point).double()

    def measure(texts: Sequence[tuple[str, ...]]) -> list[float]:
        rows = [encode(lm, text).ids for group in texts for text in group]
        if not rows:
            return []
        repeats = torch.tensor([len(group) for group in texts])
        others = keys_at(lm, rows, point).double()
        return (others - own.repeat_interleave(repeats, dim=0)).norm(dim=1).tolist()

    between = torch.cdist(own, own, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = between.fill_diagonal_(torch.inf).amin(1)
    return KeyDistances(
        measure([fact.paraphrases for fact in facts]),
        measure([fact.neighbours for fact in facts]),
        nearest.tolist() if len(facts) > 1 else [],
    )


def _encode_prompt(lm: LanguageModel, fact: Fact) -> list[int]:
    row = encode_fact(lm, fact)
    return row.ids[: row.prompt_last + 1]
