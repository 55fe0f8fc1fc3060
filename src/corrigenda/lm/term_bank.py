"""Terms of many patches at one place as one hook: neurons, slots, factors, one row each.

What such a patch adds is a sum over its rows, so the rows of all patches make one term. Running
500 of them is one product, and putting one on or taking it off moves its own rows and those that
became active later.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.linalg.row_buffer import RowBuffer
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.passes import WatchedMap
from corrigenda.lm.session import Session, session_of
from corrigenda.lm.sites import Point, Site, value

RowTerm = Callable[
    [tuple[Tensor, ...], Float[Tensor, "batch pos d_in"], Float[Tensor, "batch pos d_out"]],
    Float[Tensor, "batch pos d_out"] | None,
]
"""From all rows, the input and the output of a weight, what is added; None adds nothing."""


@dataclass(eq=False)
class _Member:
    """Rows of one patch, as it stores them; integers keep their dtype."""

    tensors: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.tensors[0])


class TermBank:
    """Rows of the active patches of one kind at one site, in the order in which they came.

    Rows are copied to each device and dtype at which a pass needs them.

    Attributes:
        hooks: Removes the hooks from the model when closed.
        hook: The one at the output.
    """

    def __init__(self, term: RowTerm) -> None:
        """Begin without rows."""
        self._term = term
        self._members: list[_Member] = []
        self._count = 0
        self._copies: dict[tuple[torch.device, torch.dtype], _Copy] = {}
        self.hooks = ExitStack()
        self.hook: WatchedMap | None = None

    def __len__(self) -> int:
        return len(self._members)

    def term(
        self, x: Float[Tensor, "batch pos d_in"], output: Float[Tensor, "batch pos d_out"]
    ) -> Float[Tensor, "batch pos d_out"] | None:
        """Return what all rows add."""
        if not self._count:
            return None
        place = x.device, x.dtype
        if place not in self._copies:
            self._copies[place] = _Copy(*place)
        return self._term(self._copies[place].rows(self._members), x, output)

    def append(self, member: _Member) -> None:
        """Put the rows of a patch after the others."""
        self._members.append(member)
        self._count += len(member)

    def remove(self, member: _Member) -> None:
        """Take the rows of a patch out."""
        end = self._count
        for place in reversed(range(len(self._members))):
            own = self._members[place]
            if own is member:
                break
            end -= len(own)
        else:
            raise AssertionError("the member is there")
        del self._members[place]
        self._count -= len(member)
        for copy in self._copies.values():
            copy.remove(place, end - len(member), end)


class _Copy:
    """Rows of the first members of a bank on one device, in one dtype."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._buffers: tuple[RowBuffer, ...] = ()
        self._members = 0

    def rows(self, members: Sequence[_Member]) -> tuple[Tensor, ...]:
        """Return the rows of all members; those that are missing are copied."""
        if not self._buffers:
            self._buffers = tuple(RowBuffer() for _ in members[0].tensors)
        for member in members[self._members :]:
            for buffer, tensor in zip(self._buffers, member.tensors, strict=True):
                dtype = self._dtype if tensor.is_floating_point() else tensor.dtype
                buffer.append(tensor.to(self._device, dtype))
        self._members = len(members)
        return tuple(buffer.rows for buffer in self._buffers)

    def remove(self, place: int, begin: int, end: int) -> None:
        if place < self._members:
            self._members -= 1
            for buffer in self._buffers:
                buffer.remove(begin, end)


@contextmanager
def add_rows(
    lm: LanguageModel,
    site: Site,
    tensors: Sequence[Tensor],
    *,
    kind: Hashable,
    term: RowTerm,
    point: Point | None = None,
) -> Generator[None]:
    """Add a term made of rows to the output of a weight, until left.

    Rows of one kind at one site are one term, as long as no other hook came between them at that
    output; so terms act in the order in which they were added.

    Args:
        lm: The model.
        site: The weight.
        tensors: One row each of every tensor belongs together; copied when they are needed.
        kind: What terms have in common that are made alike; same kinds have the same `term`.
        term: Makes the term of all rows, see `corrigenda.lm.hooks.additions` for dtypes.
        point: What the term reads; by default the input of the weight.

    Raises:
        UnknownSite (CG303): the model has no such point.
    """
    session = session_of(lm.model)
    name = "rows", site, kind
    bank: TermBank | None = session.memories.get(name)
    if bank is None or _find_last(session, site) is not bank.hook:
        bank = TermBank(term)
        inputs = None if point is None else {site: point}
        bank.hooks.enter_context(lm.add({site: bank.term}, inputs=inputs))
        bank.hook = _find_last(session, site)
        session.memories[name] = bank
    member = _Member(tuple(tensors))
    bank.append(member)
    try:
        yield
    finally:
        bank.remove(member)
        if not len(bank):
            if session.memories.get(name) is bank:
                del session.memories[name]
            bank.hooks.close()


def _find_last(session: Session, site: Site) -> WatchedMap | None:
    """Return the hook that acts last on the output of a weight."""
    own = (one for one in reversed(session.watched) if one.point == value(site))
    return next(own, None)
