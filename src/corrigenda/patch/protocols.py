"""Protocol of every edit, and of the three forms of edit that leave the weights alone.

The laws hold for all of them:

1. Pure: making an edit leaves the model's digest unchanged.
2. Reversible: applying and reverting is bitwise identity, in any order among several patches.
3. Deterministic: the same model, facts, state and seed give an equal patch.
4. Neutral: no facts give an empty patch, and applying it changes nothing.
5. Portable: loading a saved patch gives an equal patch.
6. Contained: a question out of scope gives exactly what the unedited model gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from torch import Tensor

from corrigenda.patch.header import Header

if TYPE_CHECKING:
    from corrigenda.lm.interception import RewrittenPrompt
    from corrigenda.lm.model import LanguageModel
    from corrigenda.patch.applied import Applied


@runtime_checkable
class Patch(Protocol):
    """An edit as a value: frozen, compared by content."""

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

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the patch by its name in a file."""
        ...

    def apply(
        self,
        lm: LanguageModel,
        *,
        mode: Literal["merge", "runtime"] | None = None,
        force: bool = False,
    ) -> Applied:
        """Make it active; if this raises, nothing has changed.

        Raises:
            WrongBase (CG401): made on another model, or on top of patches that are not active.
            NotApplied (CG406): active already.
        """
        ...

    def save(self, path: str | Path) -> Path:
        """Write it to one file that `load_patch` reads."""
        ...


@runtime_checkable
class HookPatch(Patch, Protocol):
    """An edit that adds a module with its own tensors at a site (an adapter, a codebook).

    Parameters of the model keep their bits even while it is active. `apply` is
    `apply_hooks(self, lm, force=force)` whatever the mode.
    """

    def hooks(self, lm: LanguageModel) -> AbstractContextManager[object]:
        """Return a context that is entered when the patch is applied and left when it is reverted.

        Entering twice on two models must work. Where a query is out of scope, the hooks return the
        very tensor they were given.
        """
        ...


@runtime_checkable
class PromptPatch(Patch, Protocol):
    """An edit of what goes into the model (demonstrations, retrieved facts).

    `apply` is `apply_hooks(self, lm, force=force)`. While it is active, all functions of
    `corrigenda.lm.decoding` and the model's own `generate` ask the rewritten prompts. Several
    active ones rewrite one after the other, in order of application.
    """

    def rewrite(self, lm: LanguageModel, prompts: Sequence[str]) -> list[RewrittenPrompt]:
        """Return what to ask for each prompt; the prompt itself where it is out of scope.

        Pure and deterministic. Asking the model from here asks it without prompt and answer
        patches.
        """
        ...


@runtime_checkable
class AnswerPatch(Patch, Protocol):
    """An edit of the procedure that answers (decomposing a question, checking a memory).

    `apply` is `apply_hooks(self, lm, force=force)`; of several active ones the last that has an
    answer decides.
    """

    def answers(self, lm: LanguageModel, prompts: Sequence[str]) -> list[str | None]:
        """Return the answers, without leading space; None where a prompt is out of scope.

        Asking the model from here asks it without prompt and answer patches.
        """
        ...
