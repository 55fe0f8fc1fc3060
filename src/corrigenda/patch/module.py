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

from corrigenda.errors import CorruptFile, NonFinite, UnknownSite, WrongBase
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.patch.applied import Applied
from corrigenda.patch.changes import digest_of, own_copy
from corrigenda.patch.forms import Option, require_forms, require_options
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
        forms: Tensors of the kind, see `corrigenda.patch.forms`; None leaves them unchecked.
        options: Entries of the header's `config` that it reads.
        noted: Entries of the header's `notes` that it reads.
        may_be_bare: Whether it may have facts and no tensors: nothing had to be stored for them.
        stored: Tensors by name.
        header: Method, configuration, facts, base model; its `kind` is that of the class.

    Raises:
        NonFinite (CG201): a tensor holds infinities or NaN.
    """

    kind: ClassVar[str]
    forms: ClassVar[Mapping[str, str] | None] = None
    options: ClassVar[Mapping[str, Option]] = MappingProxyType({})
    noted: ClassVar[Mapping[str, Option]] = MappingProxyType({})
    may_be_bare: ClassVar[bool] = False

    stored: Mapping[str, Tensor]
    header: Header

    def __post_init__(self) -> None:
        kept = {name: own_copy(self.stored[name]) for name in sorted(self.stored)}
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
        return tuple(Fact.restore(fact) for fact in self.header.facts)

    def require_sound(self) -> None:
        """Refuse a patch that is not as its kind declares; what a file gives is checked so.

        A kind that must check more overrides this, and calls it first.

        Raises:
            ValueError: the message says what was expected.
        """
        require_options({} if self.is_empty else self.options, self.header.config)
        require_options({} if self.is_empty else self.noted, self.header.notes)
        if self.forms is not None and (self.stored or not (self.is_empty or self.may_be_bare)):
            require_forms(self.forms, self.stored, {"facts": len(self.header.facts)})
        _ = self.facts

    def sizes_in(self, lm: LanguageModel) -> dict[str, int]:
        """Return the sizes that axes of its tensors must have to fit a model."""
        return {"d_model": lm.d_model}

    def require_fit(self, lm: LanguageModel) -> None:
        """Refuse a model of other widths, or without the layers that the patch is for."""
        if self.forms is None or self.is_empty or not self.stored:
            return
        try:
            sizes = {"facts": len(self.header.facts), **self.sizes_in(lm)}
            require_forms(self.forms, self.stored, sizes)
        except UnknownSite:
            raise
        except ValueError as error:
            raise WrongBase(
                f"this {self.header.method} patch does not fit the model: {error}.",
                where=lm.name,
                hint="The patch was made for a model of another size.",
            ) from error

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the patch by its name in a file."""
        return dict(self.stored)

    def digest(self) -> str:
        """Return a hash of what decides its effect: kind, tensors, facts and configuration."""
        header = self.header.model_dump(include={"kind", "facts", "config"})
        text = json.dumps(header, sort_keys=True)
        return hashlib.sha256(f"{text}\n{digest_of(self.stored)}".encode()).hexdigest()

    def run_time_hooks(self, lm: LanguageModel, *, merge: bool) -> AbstractContextManager[object]:
        """Return the hooks of the patch, in both modes; they leave the weights alone."""
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
    with ledger.session.lock:
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
