"""The common part of all kinds of patch, and patches composed of several kinds."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor

from corrigenda.errors import NotApplied, WrongBase
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.patch.applied import Applied
from corrigenda.patch.changes import Change, same_tensors
from corrigenda.patch.display import html_table, one_line
from corrigenda.patch.file import save_patch
from corrigenda.patch.header import Header, compose_headers
from corrigenda.patch.ledger import digests_of, ledger_of

if TYPE_CHECKING:
    from collections.abc import Generator

COMPOSED = "composed"
"""Kind of a patch that is composed of several kinds."""


class PatchValue(ABC):
    """An edit as a value: tensors and a header, compared by content.

    `first + second` is one patch that does both, in that order. Composition is associative, and a
    patch that changes nothing is neutral.
    """

    header: Header

    @property
    @abstractmethod
    def is_empty(self) -> bool:
        """Whether applying it changes nothing."""

    @abstractmethod
    def digest(self) -> str:
        """Return a hash of what decides its effect."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the patch by its name in a file."""

    @abstractmethod
    def run_time_hooks(
        self, lm: LanguageModel, *, merge: bool
    ) -> AbstractContextManager[object] | None:
        """Return what is entered while the patch is active; None where weights do it all.

        Args:
            lm: The model.
            merge: Whether changes of weights are written into them.
        """

    def weight_changes(self) -> list[tuple[Site, Change]]:
        """Return what is added to weights when the patch is merged."""
        return []

    def require_mode(self, lm: LanguageModel, mode: str) -> None:
        """Refuse unknown modes, and those that the model does not allow.

        Raises:
            QuantisedWeights (CG304): weights would be written, and the model is quantised.
        """
        if mode not in ("merge", "runtime"):
            raise ValueError(f'mode is "merge" or "runtime", not {mode!r}')

    def require_fit(self, lm: LanguageModel) -> None:  # noqa: B027 - most kinds fit any model
        """Refuse a model of other shapes.

        Raises:
            WrongBase (CG401): a change has another shape than the weight.
            UnknownSite (CG303): the model has no such layer or part.
        """

    def join(self, other: PatchValue) -> PatchValue | None:
        """Return one patch of the same kind that does both; None where there is none."""
        return None

    def apply(
        self,
        lm: LanguageModel,
        *,
        mode: Literal["merge", "runtime"] | None = None,
        force: bool = False,
    ) -> Applied:
        """Make the patch active on a model; if this raises, nothing has changed.

        Args:
            lm: A model; several patches may be active on it, in both modes.
            mode: For changes of weights: "merge" rewrites the weights (nothing is slower
                afterwards); "runtime" leaves them alone and adds `(x @ right) @ left.T` in forward
                hooks. By default "merge", but "runtime" on a quantised model. Other kinds of patch
                always work at run time.
            force: Apply it to another base, without its prerequisites, twice, or over what
                something else wrote into a patched weight. Shapes must fit.

        Returns:
            A context manager with `.revert()`; merged weights return bit for bit, in any order.

        Raises:
            WrongBase (CG401): made on another model, or its prerequisites are not active.
            NotApplied (CG406): active already, or a part of it is.
            WeightsChanged (CG407): something else has written into a patched weight.
            QuantisedWeights (CG304): merge mode on a quantised model.
            NonFinite (CG201): the sum overflows the dtype of the weight.
            UnknownSite (CG303): the model has no such layer or part.
        """
        if mode is None:
            mode = "runtime" if lm.is_quantised else "merge"
        self.require_mode(lm, mode)
        ledger = ledger_of(lm)
        with ledger.session.lock:
            ledger.admit(self, lm, force=force)
            self.require_fit(lm)
            merge = mode == "merge"
            hooks = self.run_time_hooks(lm, merge=merge)
            changes = self.weight_changes() if merge else ()
            entry = Applied(self, lm, "merge" if hooks is None else "runtime", ledger, changes)
            return ledger.enter(entry, hooks, force=force)

    def save(self, path: str | Path) -> Path:
        """Write the patch to one safetensors file; see `corrigenda.patch.file.save_patch`."""
        return save_patch(self, path)

    def __add__(self, other: object) -> PatchValue:
        """Return one patch that does what both do, in this order.

        Raises:
            WrongBase (CG401): they were made on different models.
            NotApplied (CG406): both contain the same patch, whose effect would double.
        """
        if not isinstance(other, PatchValue):
            return NotImplemented
        if self.is_empty or other.is_empty:
            return other if self.is_empty else self
        require_composable(self, other)
        members = list(members_of(self))
        first, *rest = members_of(other)
        joined = members[-1].join(first)
        members[-1:] = [members[-1], first] if joined is None else [joined]
        members += rest
        return members[0] if len(members) == 1 else ComposedPatch(tuple(members))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, PatchValue)
            and type(other) is type(self)
            and self.header.to_json() == other.header.to_json()
            and same_tensors(self.tensors(), other.tensors())
        )

    __hash__ = None  # type: ignore[assignment]  # holds tensors, compared by content

    @abstractmethod
    def __reduce__(self) -> tuple[object, ...]:
        """Return how it is built anew, for `copy` and `pickle`."""

    def __repr__(self) -> str:
        return one_line(self.header, self.tensors())

    def _repr_html_(self) -> str:
        return html_table(self.header, self.tensors())


@dataclass(frozen=True, eq=False, repr=False)
class ComposedPatch(PatchValue):
    """Patches of several kinds that are applied, reverted and saved as one.

    Made by `+`. Neighbouring changes of weights are one member.

    Attributes:
        members: The patches, at least two, in order of application.
    """

    kind: ClassVar[str] = COMPOSED

    members: tuple[PatchValue, ...]

    def __post_init__(self) -> None:
        first, *others = self.members
        header, digest = first.header, first.digest()
        for other in others:
            header = compose_headers(header, other.header, digests=(digest, other.digest()))
            digest = ""
        config = {"members": [member.header.model_dump(mode="json") for member in self.members]}
        header = header.model_copy(update={"kind": COMPOSED, "config": config})
        object.__setattr__(self, "header", header)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.members,)

    @property
    def is_empty(self) -> bool:
        """Whether no member changes anything."""
        return all(member.is_empty for member in self.members)

    def digest(self) -> str:
        """Return a hash of the members' digests, in order."""
        text = "\n".join(member.digest() for member in self.members)
        return hashlib.sha256(f"{COMPOSED}\n{text}".encode()).hexdigest()

    def tensors(self) -> dict[str, Tensor]:
        """Return the members' tensors, each name after the place of its member."""
        return {
            f"{place}/{name}": tensor
            for place, member in enumerate(self.members)
            for name, tensor in member.tensors().items()
        }

    def weight_changes(self) -> list[tuple[Site, Change]]:
        """Return what all members add to weights."""
        return [change for member in self.members for change in member.weight_changes()]

    def run_time_hooks(
        self, lm: LanguageModel, *, merge: bool
    ) -> AbstractContextManager[object] | None:
        """Return the members' hooks, entered in order."""
        hooks = [member.run_time_hooks(lm, merge=merge) for member in self.members]
        present = [one for one in hooks if one is not None]
        return _enter_all(present) if present else None

    def require_mode(self, lm: LanguageModel, mode: str) -> None:
        """Refuse what a member refuses."""
        for member in self.members:
            member.require_mode(lm, mode)

    def require_fit(self, lm: LanguageModel) -> None:
        """Refuse what a member refuses."""
        for member in self.members:
            member.require_fit(lm)


def members_of(patch: PatchValue) -> tuple[PatchValue, ...]:
    """Return the members of a composed patch; of another, itself alone."""
    return patch.members if isinstance(patch, ComposedPatch) else (patch,)


def require_composable(first: PatchValue, second: PatchValue) -> None:
    """Refuse a sum of patches that do not belong together.

    Raises:
        WrongBase (CG401): they were made on different models.
        NotApplied (CG406): both contain the same patch, whose effect would double.
    """
    bases = {first.header.base_digest, second.header.base_digest} - {None}
    if len(bases) > 1:
        raise WrongBase(
            "these patches were made on different models and cannot become one.",
            where=f"{first.header.base_name} and {second.header.base_name}",
        )
    twice = set(digests_of(first)) & set(digests_of(second))
    if twice:
        raise NotApplied(
            f"both patches contain the same {second.header.method} patch; their sum would apply "
            "it twice.",
            where="in both: " + ", ".join(sorted(name[:12] for name in twice)),
            hint="Compose each patch once; `patch.scale(2.0)` is a change of weights twice as "
            "large.",
        )


@contextmanager
def _enter_all(hooks: Sequence[AbstractContextManager[object]]) -> Generator[None]:
    with ExitStack() as stack:
        for one in hooks:
            stack.enter_context(one)
        yield
