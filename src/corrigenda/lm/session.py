"""State that all wrappers of one model share: patches, interceptors, prompt ends, memories.

It is one attribute of the model and not an entry of a weak dictionary: active patches refer to the
model, so a dictionary that holds them would keep the model alive for ever, while a circle of
references is collected. Copies of a model, pickled ones too, start with a session of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import RLock
from types import NoneType
from typing import Any, TypeVar, overload

from torch import nn

from corrigenda.errors import NotApplied
from corrigenda.lm.digest import TensorDigests
from corrigenda.lm.interceptors import Interceptors
from corrigenda.lm.interrupts import defer_interrupts
from corrigenda.lm.model_hooks import drop_copied_hooks
from corrigenda.lm.passes import WatchedMap
from corrigenda.lm.prompt_ends import PromptEnds

_ATTRIBUTE = "_corrigenda_session"

PatchType = TypeVar("PatchType")


class Session:
    """State of one model.

    Attributes:
        model: The model.
        interceptors: Objects that rewrite its prompts or answer in its place.
        prompt_ends: Where the prompts of the running pass end.
        memories: What active patches share, by group; see `corrigenda.engines.shared_memory`.
        entries: The active patches, in order of application.
        digest_counts: How many active patches have, or contain, each digest; by first application.
        base_digest: Digest of the model without any of them; None while there are none.
        weights: The weights that they change, see `corrigenda.patch.patched_weight`.
        watched: The functions placed at points of its passes, in the order in which they act.
        tensor_digests: Hashes of the model's tensors.
        lock: Held by the thread that reads or changes all this together.
    """

    def __init__(self, model: nn.Module) -> None:
        """Create the state of a model that has no patches."""
        self.model = model
        self.interceptors = Interceptors()
        self.prompt_ends = PromptEnds(model)
        self.memories: dict[Hashable, Any] = {}
        self.entries: list[Any] = []
        self.digest_counts: dict[str, int] = {}
        self.base_digest: str | None = None
        self.weights: list[Any] = []
        self.watched: list[WatchedMap] = []
        self.tensor_digests = TensorDigests()
        self._overrides: dict[str, int] = {}
        self.lock = RLock()

    def forget(self, watched: Sequence[WatchedMap]) -> None:
        """Drop functions that were removed from the passes."""
        self.watched = [one for one in self.watched if one not in watched]

    def __deepcopy__(self, memo: object) -> None:
        """Leave the copy of a model without a session, so that it starts with a fresh one."""

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return NoneType, ()

    @contextmanager
    def exclusive(self) -> Generator[None]:
        """Let no other thread, and no interrupt from the keyboard, in until left."""
        with self.lock, defer_interrupts():
            yield

    @contextmanager
    def override(self, name: str, function: Callable[..., object]) -> Generator[None]:
        """Put a function in the place of a method of the model, until the last override is left."""
        attributes = self.model.__dict__
        attributes[name] = _Override(function, self.model, name)
        self._overrides[name] = self._overrides.get(name, 0) + 1
        try:
            yield
        finally:
            self._overrides[name] -= 1
            if not self._overrides[name]:
                del attributes[name], self._overrides[name]


class ActivePatches(Sequence[PatchType]):
    """The patches active on one model, in order of application; read it as `lm.patches`.

    Of a composed patch its members are listed.
    """

    def __init__(self, session: Session) -> None:
        """Show the patches of a session."""
        self.session = session

    @property
    def entries(self) -> list[Any]:
        """The `Applied` of each."""
        return self.session.entries

    @overload
    def __getitem__(self, index: int) -> PatchType: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[PatchType, ...]: ...
    def __getitem__(self, index: int | slice) -> PatchType | tuple[PatchType, ...]:
        return tuple(self)[index]

    def __len__(self) -> int:
        return len(tuple(iter(self)))

    def __iter__(self) -> Iterator[PatchType]:
        patches = [entry.patch for entry in self.entries]
        return iter([one for patch in patches for one in getattr(patch, "members", (patch,))])

    def __repr__(self) -> str:
        names = [_method(patch) for patch in self]
        return f"<active patches: {', '.join(names) or 'none'}>"

    def revert(self, patch: object) -> None:
        """Take off the latest application of a patch.

        Raises:
            NotApplied (CG406): no equal patch is active.
        """
        for entry in reversed(self.entries):
            if entry.patch == patch:
                entry.revert()
                return
        raise NotApplied(
            f"this {_method(patch)} patch is not active on this model.",
            hint="`lm.patches` lists those that are.",
        )

    def clear(self) -> None:
        """Take off every patch; the model is as it was before the first."""
        for entry in reversed(tuple(self.entries)):
            entry.revert()


def _method(patch: object) -> str:
    return getattr(getattr(patch, "header", None), "method", type(patch).__name__)


class _Override:
    """A function in the place of a model's method; a copy of the model gets the method back."""

    def __init__(self, function: Callable[..., object], model: nn.Module, name: str) -> None:
        self._function, self._model, self._name = function, model, name

    def __call__(self, *args: object, **options: object) -> object:
        return self._function(*args, **options)

    def __deepcopy__(self, memo: dict[int, Any]) -> object:
        return partial(getattr(type(self._model), self._name), memo[id(self._model)])

    def __reduce__(self) -> tuple[object, ...]:
        return partial, (getattr(type(self._model), self._name), self._model)


def session_of(model: nn.Module) -> Session:
    """Return the state of a model; all that wrap the same model get the same one."""
    session = model.__dict__.get(_ATTRIBUTE)
    if session is None or session.model is not model:
        drop_copied_hooks(model)
        session = model.__dict__[_ATTRIBUTE] = Session(model)
    return session
