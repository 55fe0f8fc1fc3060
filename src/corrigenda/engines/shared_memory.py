"""Patches that share a memory while they are active: one codebook, one set of hooks a model.

Each patch is a value with entries of its own. What the active ones know together is made from
all of them, in the order in which they became active, and made again when one comes or goes; so
whatever a patch did to the entries of others goes when it goes.
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
MemoryKind = TypeVar("MemoryKind", bound="Memory[Any]")

# Relative difference between the states of one prompt read in two batches.
_NOISE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.003}


class Memory(ABC, Generic[PatchKind]):
    """What the active patches of one kind know together.

    Attributes:
        lm: The model.
        patches: Those that are active, in order.
        suspended: Whether the model runs as if none were, while one more is trained.
        hooks: What takes the memory out of the model.
    """

    def __init__(self, lm: LanguageModel) -> None:
        """Start without patches."""
        self.lm = lm
        self.patches: list[PatchKind] = []
        self.suspended = False
        self.hooks = ExitStack()

    @abstractmethod
    def transforms(self) -> Mapping[Point, TensorMap]:
        """Where the memory stands in the model."""

    @abstractmethod
    def forget(self) -> None:
        """Drop what was made from the patches: they are others now."""


def memory_of(lm: LanguageModel, kind: type[MemoryKind], group: Hashable) -> MemoryKind | None:
    """The memory of a group of patches on a model; None while none of them is active."""
    found = session_of(lm.model).memories.get(group)
    assert found is None or isinstance(found, kind), "a group has one kind of memory"
    return found


@contextmanager
def joined(
    lm: LanguageModel, patch: PatchKind, group: Hashable, make: Callable[[], Memory[PatchKind]]
) -> Generator[None]:
    """Let a patch take part in the memory of its group, until left.

    Args:
        lm: The model.
        patch: Who joins.
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
    memory.forget()
    try:
        yield
    finally:
        # By identity: equal patches may be active twice.
        place = next(i for i, one in enumerate(memory.patches) if one is patch)
        del memory.patches[place]
        memory.forget()
        if not memory.patches:
            del groups[group]
            memory.hooks.close()


@contextmanager
def suspended(memory: Memory[PatchKind] | None) -> Generator[None]:
    """Run the model as if none of the memory's patches were active, until left."""
    if memory is None:
        yield
        return
    before, memory.suspended = memory.suspended, True
    try:
        yield
    finally:
        memory.suspended = before


def identity(key: Float[Tensor, " d"], target: Sequence[int]) -> int:
    """A number by which patches refer to an entry: equal for equal keys and targets."""
    content = key.cpu().contiguous().numpy().tobytes() + repr(tuple(target)).encode()
    return int.from_bytes(hashlib.sha256(content).digest()[:7], "big") + 1


def keys_at(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], point: Point
) -> Float[Tensor, "n d"]:
    """What stands at a point at the last token of each prompt; float32, on the CPU."""
    found: dict[int, Tensor] = {}
    for batch in batches(lm, [len(ids) for ids in prompts], None):
        tokens = Tokens.pad([prompts[index] for index in batch], pad_id(lm)).to(lm.device)
        with lm.prompt_ends.mark(tokens.lengths - 1):
            taken = lm.tap(tokens, [point], positions=tokens.lengths - 1)[point]
        found |= dict(zip(batch, taken.float().cpu(), strict=True))
    return torch.stack([found[index] for index in range(len(prompts))])


def noise(lm: LanguageModel, keys: Float[Tensor, "n d"]) -> list[float]:
    """How far the key of a prompt may lie from itself, read in another batch."""
    return (_NOISE[lm.dtype] * keys.double().norm(dim=1)).tolist()


class Distances(NamedTuple):
    """How far apart keys are; what a radius has to tell apart.

    Attributes:
        paraphrases: From each prompt to each of its paraphrases.
        neighbours: From each prompt to each of its neighbours.
        others: From each prompt to the nearest prompt of another fact.
    """

    paraphrases: list[float]
    neighbours: list[float]
    others: list[float]


def distances(lm: LanguageModel, facts: Sequence[Fact], point: Point) -> Distances:
    """Measure the keys of facts, their paraphrases and neighbours, to choose a radius by.

    Args:
        lm: The model, as it is now.
        facts: The facts.
        point: Where keys are read.
    """
    own = keys_at(lm, [_prompt(lm, fact) for fact in facts], point).double()

    def to(texts: Sequence[tuple[str, ...]]) -> list[float]:
        rows = [encode(lm, text).ids for group in texts for text in group]
        if not rows:
            return []
        repeats = torch.tensor([len(group) for group in texts])
        others = keys_at(lm, rows, point).double()
        return (others - own.repeat_interleave(repeats, dim=0)).norm(dim=1).tolist()

    between = torch.cdist(own, own, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = between.fill_diagonal_(torch.inf).amin(1)
    return Distances(
        to([fact.paraphrases for fact in facts]),
        to([fact.neighbours for fact in facts]),
        nearest.tolist() if len(facts) > 1 else [],
    )


def _prompt(lm: LanguageModel, fact: Fact) -> list[int]:
    row = encode_fact(lm, fact)
    return row.ids[: row.prompt_last + 1]
