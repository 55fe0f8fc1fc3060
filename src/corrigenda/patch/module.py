"""Edits that leave the weights alone, as values with tensors and a header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar, Self

import torch
from torch import Tensor

from corrigenda.errors import CorruptFile, NonFinite
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.patch.applied import Applied
from corrigenda.patch.changes import digest_of
from corrigenda.patch.generate import intercept
from corrigenda.patch.header import Header
from corrigenda.patch.ledger import header_for, ledger_of
from corrigenda.patch.protocols import AnswerPatch, HookPatch, PromptPatch
from corrigenda.patch.value import PatchValue
from corrigenda.registry import Registry


@dataclass(frozen=True, eq=False, repr=False)
class ModulePatch(PatchValue):
    """An edit that works by hooks, by rewriting prompts, or by answering.

    A subclass lives in the module of its method, sets `kind` to the method's name, and has one of
    the methods of `HookPatch`, `PromptPatch` and `AnswerPatch`. Everything it does follows from its
    tensors and from `header` (facts, `config`, `notes`), so that saving and loading changes
    nothing. It is a value: tensors are copied on construction and shared with nothing.

    Attributes:
        stored: Tensors by name.
        header: Method, configuration, facts, base model; its `kind` is that of the class.

    Raises:
        NonFinite (CG201): a tensor holds infinities or NaN.
    """

    kind: ClassVar[str]

    stored: Mapping[str, Tensor]
    header: Header

    def __post_init__(self) -> None:
        kept = {
            name: self.stored[name].detach().to("cpu", copy=True).contiguous()
            for name in sorted(self.stored)
        }
        for name, tensor in kept.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise NonFinite(
                    "a tensor of the patch holds infinities or NaN.",
                    where=f"{name}, method {self.header.method}",
                )
        object.__setattr__(self, "stored", MappingProxyType(kept))
        if self.header.kind != self.kind:
            header = self.header.model_copy(update={"kind": self.kind})
            object.__setattr__(self, "header", header)

    @classmethod
    def make(
        cls,
        lm: LanguageModel,
        stored: Mapping[str, Tensor],
        *,
        method: str,
        config: Mapping[str, object] | None = None,
        facts: Sequence[object] = (),
        notes: Mapping[str, object] | None = None,
    ) -> Self:
        """Return a patch made now on this model; see `corrigenda.patch.ledger.header_for`."""
        return cls(stored, header_for(lm, method=method, config=config, facts=facts, notes=notes))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (dict(self.stored), self.header)

    @property
    def is_empty(self) -> bool:
        """Whether it was made for no facts, so that applying it changes nothing."""
        return not self.header.facts

    @cached_property
    def facts(self) -> tuple[Fact, ...]:
        """The facts of the header, as they were given."""
        return tuple(
            Fact(
                **{  # type: ignore[arg-type]  # what `asdict` made of a Fact
                    name: tuple(value) if isinstance(value, list) else value
                    for name, value in fact.items()
                }
            )
            for fact in self.header.facts
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the patch by its name in a file."""
        return dict(self.stored)

    def digest(self) -> str:
        """Return a hash of what decides its effect: kind, tensors, facts and configuration."""
        header = self.header.model_dump(include={"kind", "facts", "config"})
        text = json.dumps(header, sort_keys=True)
        return hashlib.sha256(f"{text}\n{digest_of(self.stored)}".encode()).hexdigest()

    def run_time_hooks(self, lm: LanguageModel, *, merge: bool) -> AbstractContextManager[object]:
        """Return the hooks of the patch, whatever the mode; they leave the weights alone."""
        return hooks_of(self, lm)  # type: ignore[arg-type]  # subclasses are one of the three


def hooks_of(
    patch: HookPatch | PromptPatch | AnswerPatch, lm: LanguageModel
) -> AbstractContextManager[object]:
    """Return what is entered while a patch without weights is active; nothing for an empty one."""
    if patch.is_empty:
        return ExitStack()
    return patch.hooks(lm) if isinstance(patch, HookPatch) else intercept(patch, lm)


def apply_hooks(
    patch: HookPatch | PromptPatch | AnswerPatch, lm: LanguageModel, *, force: bool = False
) -> Applied:
    """Make a patch active that works by hooks, by rewriting prompts, or by answering.

    Raises:
        WrongBase (CG401): made on another model, or its prerequisites are not active.
        NotApplied (CG406): active already.
    """
    ledger = ledger_of(lm)
    with ledger.exclusive():
        ledger.admit(patch, lm, force=force)
        entry = Applied(patch, lm, "runtime", ledger)
        return ledger.enter(entry, hooks_of(patch, lm), force=force)


PATCH_KINDS: Registry[ModulePatch] = Registry(
    "kind of patch",
    "corrigenda.methods",
    "corrigenda.patch.module:ModulePatch",
    CorruptFile,
    group="corrigenda.methods",
    attribute="kind",
)
"""Classes of patches by kind, which is the name of their method.

They are found in the module of the method's editor, of this library or of a plug-in; nothing else
is imported, so that a file cannot name code to run.
"""


def module_class(kind: str) -> type[ModulePatch] | None:
    """Return the class of module patches of a kind; None where this installation has none."""
    if kind not in PATCH_KINDS.names():
        return None
    try:
        return PATCH_KINDS.get(kind)
    except CorruptFile:
        return None
