"""One pass of a target search: its rows, the losses of every fact, and the gradient.

Which rows run is decided on the host, and the indices that follow from it are kept on the device
until a fact is finished, so that a pass neither waits for the device nor copies to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corrigenda.engines.locate.records import EntryRole, SearchRow, SearchSettings
from corrigenda.engines.locate.search_size import HEAD_ROWS, bucket_tokens
from corrigenda.lm.components import ComponentTail
from corrigenda.lm.footprint import head_rows, room_of
from corrigenda.lm.kv_cache import pad_id
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Tokens
from corrigenda.lm.tail import Tail

# Padded positions cost less than streaming the weights of the later blocks for another bucket.
_PADDING_TOKENS = {"cpu": 16, "cuda": 1024}
# An answer that is to become unlikely has a finite loss however likely it is.
_LARGEST_ODDS = 1 - 1e-4


class PassSums(NamedTuple):
    """Sums of one step for each fact, and the gradient with respect to delta.

    `missed` counts reads at which the target is not the most likely token.
    """

    nll: Float[Tensor, " n"]
    kl: Float[Tensor, " n"]
    missed: Float[Tensor, " n"]
    grad: Float[Tensor, "n d_entry"]

    @classmethod
    def empty(cls, deltas: Float[Tensor, "n parts d_model"]) -> PassSums:
        """Return zeros for the facts of some deltas."""
        nll, kl, missed = deltas.new_zeros(3, len(deltas))
        return cls(nll, kl, missed, torch.zeros_like(deltas).flatten(1))


class _Essences(NamedTuple):
    """Reads whose distribution should stay, in one part of the reads.

    Attributes:
        places: Their places in the part.
        owners: Index of the fact of each.
        slots: Their places among all such reads of the bucket.
    """

    places: Int[Tensor, " essences"]
    owners: Int[Tensor, " essences"]
    slots: Int[Tensor, " essences"]


class _Part(NamedTuple):
    """Reads whose logits are computed together.

    Attributes:
        begin: Place of the first among the reads.
        end: Place after the last.
        essences: Reads without a label; None where there are none.
    """

    begin: int
    end: int
    essences: _Essences | None


class _Selection(NamedTuple):
    """The rows of a bucket that still run, and their reads, as indices on the device.

    Attributes:
        kept: Rows of the bucket, on the host.
        rows: The same for the tail; None for all.
        facts: Index of the fact of each row.
        at: Positions that each row is read at.
        reads: Row and column of each read that counts.
        owners: Index of the fact of each read.
        labels: Wanted token of each read, 0 at the essence.
        weights: Share of each read in the mean over contexts and target tokens; 0 at the essence.
        labelled: 1 for reads with a label, else 0.
        parts: The reads, in parts.
    """

    kept: tuple[int, ...]
    rows: Int[Tensor, " rows"] | None
    facts: Int[Tensor, " rows"]
    at: Int[Tensor, "rows k"]
    reads: tuple[Int[Tensor, " reads"], Int[Tensor, " reads"]]
    owners: Int[Tensor, " reads"]
    labels: Int[Tensor, " reads"]
    weights: Float[Tensor, " reads"]
    labelled: Float[Tensor, " reads"]
    parts: tuple[_Part, ...]


class Bucket:
    """Rows of nearly equal tail length, run together.

    Attributes:
        rows: The rows.
        tail: The later blocks on them.
    """

    def __init__(
        self,
        lm: LanguageModel,
        rows: list[SearchRow],
        layer: int,
        role: EntryRole,
        contexts: Sequence[int],
    ) -> None:
        """Run the model once and keep what does not depend on a delta.

        Args:
            lm: The model as it is now.
            rows: The rows.
            layer: Block at which the delta enters.
            role: Where it enters, as for `find_targets`.
            contexts: Number of labelled rows of each fact.
        """
        self._lm, self.rows, self._contexts = lm, rows, contexts
        self._essences = [i for i, row in enumerate(rows) if not row.labels]
        self._before: Float[Tensor, "essences vocab"] | None = None
        self._is_first = True
        self._selection: _Selection | None = None
        self._size = head_rows(lm, HEAD_ROWS)
        tokens = Tokens.pad([row.ids for row in rows], pad_id(lm)).to(lm.device)
        starts = torch.tensor([row.start for row in rows], device=lm.device)
        self.tail: Tail | ComponentTail
        if role == "components":
            self.tail = ComponentTail.build(lm, tokens, layer, starts)
        else:
            self.tail = Tail.build(lm, tokens, layer, starts, role=role)

    def run(
        self,
        live: Collection[int],
        deltas: Float[Tensor, "n parts d_model"],
        settings: SearchSettings,
        weight: Float[Tensor, " n"],
        read: PassSums,
        *,
        grad: bool,
    ) -> None:
        """Run the rows of the facts that are still searched; adds to `read`.

        Args:
            live: Indices of these facts.
            deltas: Deltas of all facts.
            settings: Settings of the search.
            weight: Weight of the target's loss of each fact in the total.
            read: What is added to.
            grad: Whether the gradient is wanted.
        """
        kept = tuple(i for i, row in enumerate(self.rows) if row.fact in live)
        if not kept:
            return
        if self._selection is None or self._selection.kept != kept:
            self._selection = self._select(kept)
        chosen = self._selection
        with torch.set_grad_enabled(grad):
            delta = deltas[chosen.facts].flatten(1).requires_grad_(grad)
            hidden = self.tail.run(delta, chosen.at, rows=chosen.rows)[chosen.reads]
        back = self._read_head(chosen, hidden.detach(), settings, weight, read, grad=grad)
        self._is_first = False
        if grad:
            torch.autograd.backward(hidden, back)
            assert delta.grad is not None
            read.grad.index_add_(0, chosen.facts, delta.grad)

    def _select(self, kept: tuple[int, ...]) -> _Selection:
        rows = [self.rows[i] for i in kept]
        width = max(len(row.reads) for row in self.rows)
        at = [[*row.reads, *[row.start] * (width - len(row.reads))] for row in rows]
        reads = [(i, j) for i, row in enumerate(rows) for j in range(len(row.reads))]
        labels = [token for row in rows for token in row.labels or (0,)]
        weights = [
            row.weight / (self._contexts[row.fact] * len(row.labels)) if row.labels else 0.0
            for row in rows
            for _ in row.reads
        ]
        device = self._lm.device

        def index(values: Sequence[int] | list[list[int]]) -> Tensor:
            return torch.tensor(values, device=device)

        places, columns = zip(*reads, strict=True)
        return _Selection(
            kept,
            None if len(kept) == len(self.rows) else index(kept),
            index([row.fact for row in rows]),
            index(at),
            (index(places), index(columns)),
            index([rows[i].fact for i in places]),
            index(labels),
            torch.tensor(weights, device=device),
            torch.tensor([float(bool(rows[i].labels)) for i in places], device=device),
            tuple(self._list_parts(kept, places, index)),
        )

    def _list_parts(
        self, kept: Sequence[int], places: Sequence[int], index: Callable[[list[int]], Tensor]
    ) -> Iterator[_Part]:
        slots = {row: slot for slot, row in enumerate(self._essences)}
        for begin in range(0, len(places), self._size):
            end = min(begin + self._size, len(places))
            found = [at for at in range(begin, end) if kept[places[at]] in slots]
            rows = [kept[places[at]] for at in found]
            essences = _Essences(
                index([at - begin for at in found]),
                index([self.rows[row].fact for row in rows]),
                index([slots[row] for row in rows]),
            )
            yield _Part(begin, end, essences if found else None)

    def _read_head(
        self,
        chosen: _Selection,
        hidden: Float[Tensor, "reads d_model"],
        settings: SearchSettings,
        scales: Float[Tensor, " n"],
        read: PassSums,
        *,
        grad: bool,
    ) -> Float[Tensor, "reads d_model"]:
        """Add the losses at the head, and return their gradient at the hidden states.

        The gradient of both losses with respect to the logits is written down directly (softmax
        minus one-hot, and `p * (log p - log p0 - KL)`), some reads at a time, so the logits of a
        step are never held together.
        """
        back = torch.empty_like(hidden)
        for part in chosen.parts:
            span = slice(part.begin, part.end)
            with torch.set_grad_enabled(grad):
                inner = hidden[span].clone().requires_grad_(grad)
                logits = self._lm.head(inner)
            with torch.no_grad():
                log_p = torch.log_softmax(logits.detach().float(), dim=-1)
                owners, labels = chosen.owners[span], chosen.labels[span]
                weights = chosen.weights[span]
                picked = log_p.gather(1, labels[:, None])[:, 0]
                # A weight below 0 makes the label unlikely: -log(1 - p) in the place of -log p.
                away = weights < 0
                odds = picked.exp().clamp_max(_LARGEST_ODDS)
                losses = torch.where(away, torch.log1p(-odds), -picked) * weights
                read.nll.index_add_(0, owners, losses)
                if settings.settled_kl is not None or settings.likeliest_stop:
                    missed = ((picked < log_p.amax(dim=1)) != away) * chosen.labelled[span]
                    read.missed.index_add_(0, owners, missed)
                weights = torch.where(away, odds / (1 - odds), 1.0) * weights * scales[owners]
                kept = part.essences
                now = None if kept is None else log_p[kept.places]
                slope = log_p.exp_().mul_(weights[:, None])
                slope.scatter_add_(1, labels[:, None], -weights[:, None])
                if kept is not None and now is not None:
                    slope[kept.places] = self._hold(kept, now, settings.kl_weight, read)
            if grad:
                torch.autograd.backward(logits, slope.to(logits.dtype))
                assert inner.grad is not None
                back[span] = inner.grad
        return back

    def _hold(
        self,
        kept: _Essences,
        now: Float[Tensor, "essences vocab"],
        kl_weight: float,
        read: PassSums,
    ) -> Float[Tensor, "essences vocab"]:
        """Add the divergence from the distributions of the first pass, and return its gradient."""
        if self._before is None or self._is_first:
            if self._before is None:
                self._before = now.new_empty(len(self._essences), now.shape[1])
            self._before[kept.slots] = now
        shift = now - self._before[kept.slots]
        odds = now.exp()
        divergence = torch.einsum("ev,ev->e", odds, shift)
        read.kl.index_add_(0, kept.owners, kl_weight * divergence)
        return kl_weight * odds * (shift - divergence[:, None])


def make_buckets(
    lm: LanguageModel,
    rows: Sequence[SearchRow],
    layer: int,
    role: EntryRole,
    contexts: Sequence[int],
) -> list[Bucket]:
    """Put rows together so that padding stays below what another pass over the weights would cost.

    Arguments are those of `Bucket`.
    """
    ordered = sorted(rows, key=lambda row: (-row.tail, row.start, row.ids, row.labels))
    kind = room_of(lm).kind
    most = bucket_tokens(lm, layer)
    found: list[list[SearchRow]] = []
    waste = 0
    for row in ordered:
        if found:
            longest = found[-1][0].tail
            waste += longest - row.tail
            full = longest * (len(found[-1]) + 1) > most
            if waste <= _PADDING_TOKENS[kind] and not full:
                found[-1].append(row)
                continue
        found.append([row])
        waste = 0
    return [Bucket(lm, part, layer, role, contexts) for part in found]
