"""The handle of a patch that is active on a model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Literal, Protocol

from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.patch.changes import Change
from corrigenda.patch.header import Header

Mode = Literal["merge", "runtime"]


class HasHeader(Protocol):
    """What the handle and the ledger need of a patch."""

    @property
    def header(self) -> Header:
        """Method, configuration, facts, base model."""
        ...

    @property
    def is_empty(self) -> bool:
        """Whether applying it changes nothing."""
        ...

    def digest(self) -> str:
        """Return a hash of the content, header apart."""
        ...


class Remover(Protocol):
    """Takes patches off a model."""

    def remove(self, entry: Applied, *, force: bool = False) -> None:
        """Take one application off."""
        ...


class Applied:
    """A patch that is active on a model; a context manager that takes it off, also on exceptions.

    Attributes:
        patch: The patch.
        lm: The model.
        mode: "merge" where only weights were rewritten, "runtime" where hooks do the work.
        changes: What was added to weights.
        hooks: What is undone when the patch comes off, apart from weights.
    """

    def __init__(
        self,
        patch: HasHeader,
        lm: LanguageModel,
        mode: Mode,
        ledger: Remover,
        changes: Sequence[tuple[Site, Change]] = (),
    ) -> None:
        """Made by `Patch.apply` only."""
        self.patch, self.lm, self.mode = patch, lm, mode
        self.changes = tuple(changes)
        self.hooks = ExitStack()
        self._ledger = ledger

    @property
    def active(self) -> bool:
        """Whether the patch is still on."""
        return any(entry is self for entry in self.lm.patches.entries)

    def revert(self, *, force: bool = False) -> None:
        """Take the patch off, bit for bit; harmless when it is off already.

        Args:
            force: Restore the weights also if something else has written into them meanwhile,
                such as training; that is lost.

        Raises:
            WeightsChanged (CG407): a patched weight holds what no patch put there.
            NonFinite (CG201): the patches that are left exceed the range of a weight's dtype.
        """
        self._ledger.remove(self, force=force)

    def __enter__(self) -> Applied:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.revert()

    def __repr__(self) -> str:
        state = "active" if self.active else "reverted"
        return f"<{self.patch.header.method} patch, {self.mode}, {state}>"
