"""Target search: one vector per fact that makes the target likely, for all facts at once.

The vector enters at one position (the subject's last token) of one block, so each step runs only
the later blocks, only from that position on (`corrigenda.lm.tail`), and the vocabulary head only
where a label is read. Rows of different facts never meet in a loss, and Adam is elementwise, so
every fact evolves as if it were searched alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corrigenda.engines.locate.records import (
    EntryRole,
    SearchLosses,
    SearchRow,
    SearchSettings,
    SearchTrace,
    Targets,
)
from corrigenda.engines.locate.search_size import HEAD_ROWS, bucket_tokens, token_bytes
from corrigenda.errors import NonFinite
from corrigenda.lm.components import ComponentTail
from corrigenda.lm.footprint import FLOAT, head_rows, room_of, vocabulary_of
from corrigenda.lm.kv_cache import pad_id
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Tokens
from corrigenda.lm.tail import Tail, memory_budget
from corrigenda.progress import report_stage

__all__ = [
    "EntryRole",
    "SearchLosses",
    "SearchRow",
    "SearchSettings",
    "SearchTrace",
    "Targets",
    "find_targets",
]

# Padded positions cost less than streaming the weights of the later blocks for another bucket.
_PADDING_TOKENS = {"cpu": 16, "cuda": 1024}
# An answer that is to become unlikely has a finite loss however likely it is.
_LARGEST_ODDS = 1 - 1e-4
_STAGE = "search"


def find_targets(
    lm: LanguageModel,
    rows: Sequence[SearchRow],
    *,
    layer: int,
    role: EntryRole,
    settings: SearchSettings,
    names: Sequence[str],
) -> Targets:
    """Search one vector per fact, with the model as it is now.

    Minimises, per fact, the mean over contexts, by their weights, and target tokens of -log p (of
    -log(1 - p) where the answer is to become unlikely, a row of negative weight), plus
    `kl_weight * KL(now || before)` at the essence row, plus `weight_decay * ||delta|| /
    ||anchor||^2`; with two deltas the last is a sum over both, and each has its own ball. The model
    runs in its own dtype; delta, Adam's moments and the losses are float32.

    Args:
        lm: The model; never changed.
        rows: All sequences of all facts, in any order. Every fact has one `anchor` row.
        layer: Block at which the delta enters.
        role: "value" adds to the output of the down projection, "state" to the output of the block,
            "components" one delta to the output of the attention, another to that of the down
            projection.
        settings: Settings of the search.
        names: How messages refer to each fact; its length is the number of facts.

    Raises:
        NonFinite (CG201): a loss is not a number, as happens on a model that earlier edits have
            broken.

    Reference: ROME (Meng et al. 2022), equation 4 and appendix E.5; MEMIT (Meng et al. 2023),
        equation 16; PMET (Li et al. 2024), equation 13, for two deltas.
    """
    parts = 2 if role == "components" else 1
    anchors = torch.zeros(len(names), parts, lm.d_model, device=lm.device)
    deltas = torch.zeros_like(anchors)
    traces = [SearchTrace() for _ in names]
    groups = _groups(lm, rows, layer, len(names))
    steps = settings.steps
    for number, group in enumerate(groups):
        course = _Course(number * steps, len(groups) * steps)
        _search(lm, group, layer, role, settings, names, anchors, deltas, traces, course)
    return Targets(anchors.flatten(1), deltas.flatten(1), traces)


def _groups(
    lm: LanguageModel, rows: Sequence[SearchRow], layer: int, num_facts: int
) -> list[list[SearchRow]]:
    """Split the facts so that the constants of one group fit in memory.

    These are the keys and values of earlier positions and the essence's distributions. The order
    is by length and then by content, so that the order in which facts were given does not matter.
    """
    of_fact: list[list[SearchRow]] = [[] for _ in range(num_facts)]
    for row in rows:
        of_fact[row.fact].append(row)
    of_fact.sort(key=lambda own: (own[0].tail, own[0].ids, own[0].labels) if own else (0,))
    budget = memory_budget(lm)
    each = token_bytes(lm, layer)
    groups: list[list[SearchRow]] = []
    used = budget
    for own in of_fact:
        size = each * sum(len(row.ids) for row in own) + FLOAT * vocabulary_of(lm)
        if used + size > budget:
            groups.append([])
            used = 0
        groups[-1].extend(own)
        used += size
    return groups


class _Course(NamedTuple):
    """What is reported of a search: the steps of earlier groups, and those of all."""

    before: int
    total: int

    def report(self, step: int, traces: Sequence[SearchTrace]) -> None:
        """Report a step of the group, with the mean loss of the facts that are still searched."""
        losses = [trace.losses[-1].nll for trace in traces if len(trace.losses) == step]
        note = f"nll {sum(losses) / len(losses):.2f}" if losses else ""
        report_stage(_STAGE, self.before + step, self.total, note=note)


@dataclass
class _Bucket:
    """Rows of nearly equal tail length, run together."""

    rows: list[SearchRow]
    tail: Tail | ComponentTail
    facts: Int[Tensor, " batch"]
    at: Int[Tensor, "batch k"]
    valid: Tensor  # (batch, k) bool: which of `at` are real reads
    labels: Int[Tensor, "batch k"]  # -1 at the essence read
    weights: Float[Tensor, "batch k"]  # 1 / (contexts * target tokens)
    head_rows: int  # positions whose logits are computed at once


def _bucket(lm: LanguageModel, rows: Sequence[SearchRow], layer: int) -> list[list[SearchRow]]:
    """Group rows so that padding stays below what another pass over the weights would cost."""
    ordered = sorted(rows, key=lambda row: (-row.tail, row.start, row.ids, row.labels))
    kind = room_of(lm).kind
    most = bucket_tokens(lm, layer)
    buckets: list[list[SearchRow]] = []
    waste = 0
    for row in ordered:
        if buckets:
            longest = buckets[-1][0].tail
            waste += longest - row.tail
            full = longest * (len(buckets[-1]) + 1) > most
            if waste <= _PADDING_TOKENS[kind] and not full:
                buckets[-1].append(row)
                continue
        buckets.append([row])
        waste = 0
    return buckets


def _build(
    lm: LanguageModel,
    rows: list[SearchRow],
    layer: int,
    role: EntryRole,
    contexts: Sequence[int],
) -> _Bucket:
    device = lm.device
    width = max(len(row.reads) for row in rows)
    at = torch.tensor([[*row.reads, *[row.start] * (width - len(row.reads))] for row in rows])
    valid = torch.tensor([[j < len(row.reads) for j in range(width)] for row in rows])
    labels = torch.full((len(rows), width), -1)
    weights = torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        if row.labels:
            labels[i, : len(row.labels)] = torch.tensor(row.labels)
            weights[i, : len(row.labels)] = row.weight / (contexts[row.fact] * len(row.labels))
    tokens = Tokens.pad([row.ids for row in rows], pad_id(lm)).to(device)
    starts = torch.tensor([row.start for row in rows], device=device)
    if role == "components":
        tail = ComponentTail.build(lm, tokens, layer, starts)
    else:
        tail = Tail.build(lm, tokens, layer, starts, role=role)
    facts = torch.tensor([row.fact for row in rows], device=device)
    moved = (part.to(device) for part in (at, valid, labels, weights))
    return _Bucket(rows, tail, facts, *moved, head_rows=head_rows(lm, HEAD_ROWS))


class _PassSums(NamedTuple):
    """Sums of one step for each fact, and the gradient with respect to delta.

    `missed` counts reads at which the target is not the most likely token.
    """

    nll: Float[Tensor, " n"]
    kl: Float[Tensor, " n"]
    missed: Float[Tensor, " n"]
    grad: Float[Tensor, "n d_entry"]

    @classmethod
    def empty(cls, deltas: Float[Tensor, "n parts d_model"]) -> _PassSums:
        nll, kl, missed = deltas.new_zeros(3, len(deltas))
        return cls(nll, kl, missed, torch.zeros_like(deltas).flatten(1))


def _search(
    lm: LanguageModel,
    rows: list[SearchRow],
    layer: int,
    role: EntryRole,
    settings: SearchSettings,
    names: Sequence[str],
    anchors: Float[Tensor, "n parts d_model"],
    deltas: Float[Tensor, "n parts d_model"],
    traces: list[SearchTrace],
    course: _Course,
) -> None:
    """Run the search for one group of facts; writes into `anchors`, `deltas` and `traces`."""
    report_stage(_STAGE, course.before, course.total)
    contexts = [0] * len(names)
    for row in rows:
        contexts[row.fact] += bool(row.labels)
    buckets = [_build(lm, part, layer, role, contexts) for part in _bucket(lm, rows, layer)]
    for bucket in buckets:
        for i, row in enumerate(bucket.rows):
            if row.anchor:
                anchors[row.fact] = bucket.tail.entry[i].float().view_as(anchors[row.fact])
    live = torch.zeros(len(names), dtype=torch.bool, device=lm.device)
    live[[row.fact for row in rows]] = True
    radius = settings.clamp * anchors.norm(dim=2)
    lengths = anchors.square().sum(dim=2)
    decay = settings.weight_decay / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)
    first, second = torch.zeros_like(deltas), torch.zeros_like(deltas)
    before: dict[int, Float[Tensor, " vocab"]] = {}
    weight = deltas.new_ones(len(names))
    for step in range(1, settings.steps + 1):
        last = step == settings.steps
        read = _PassSums.empty(deltas)
        for bucket in buckets:
            _run(lm, bucket, live, deltas, before, settings, weight, read, grad=not last)
        norms = deltas.norm(dim=2)
        shrink = (decay * norms).sum(dim=1)
        total = weight * read.nll + read.kl + shrink
        _record(traces, names, live, torch.stack([total, read.nll, read.kl, shrink], dim=1))
        course.report(step, traces)
        done, weight = _find_done(traces, settings, live, read, total)
        live &= ~done
        if last or not live.any():
            report_stage(_STAGE, course.before + settings.steps, course.total)
            break
        now = live.nonzero().flatten()
        # The gradient of a norm at zero is taken as zero.
        unit = deltas[now] / norms[now].clamp_min(torch.finfo(norms.dtype).tiny)[..., None]
        gradient = read.grad[now].view_as(unit) + decay[now, :, None] * unit
        first[now] = 0.9 * first[now] + 0.1 * gradient
        second[now] = 0.999 * second[now] + 0.001 * gradient.square()
        scale = (second[now].sqrt() / math.sqrt(1.0 - 0.999**step)).add_(1e-8)
        moved = deltas[now] - settings.learning_rate / (1.0 - 0.9**step) * first[now] / scale
        length = moved.norm(dim=2)
        beyond = length > radius[now]
        moved[beyond] *= (radius[now][beyond] / length[beyond])[:, None]
        deltas[now] = moved
        for fact, outside in zip(now.tolist(), beyond.any(dim=1).tolist(), strict=True):
            traces[fact].at_clamp = outside
            traces[fact].clamped_steps += outside


def _find_done(
    traces: list[SearchTrace],
    settings: SearchSettings,
    live: Tensor,
    read: _PassSums,
    total: Float[Tensor, " n"],
) -> tuple[Tensor, Float[Tensor, " n"]]:
    """Return which facts take no further step, and the weight of each target's loss from now on."""
    stopping = read.nll if settings.stop_on == "nll" else total
    done = live & (stopping < settings.stop_loss)
    for fact in done.nonzero().flatten().tolist():
        traces[fact].stop = "loss"
    weight = read.nll.new_ones(len(live))
    if settings.likeliest_stop:
        for fact in (live & (read.missed == 0)).nonzero().flatten().tolist():
            traces[fact].likeliest += 1
            if traces[fact].likeliest >= settings.likeliest_stop and not done[fact]:
                traces[fact].stop = "likeliest"
                done[fact] = True
    if settings.settled_kl is not None:
        settled = live & ~done & (read.missed == 0)
        for fact in (live & ~done).nonzero().flatten().tolist():
            traces[fact].settled = bool(settled[fact])
        weight = torch.where(settled, settings.settled_weight, 1.0)
        settled &= read.kl <= settings.settled_kl
        for fact in settled.nonzero().flatten().tolist():
            traces[fact].stop = "settled"
        done |= settled
    return done, weight


def _record(
    traces: list[SearchTrace], names: Sequence[str], live: Tensor, losses: Float[Tensor, "n 4"]
) -> None:
    for fact in live.nonzero().flatten().tolist():
        entry = SearchLosses(*losses[fact].tolist())
        if not math.isfinite(entry.total):
            raise NonFinite(
                f"the loss of the target search is {entry.total} at step "
                f"{len(traces[fact].losses) + 1}.",
                where=str(names[fact]),
                hint="The model gives no finite probabilities here: earlier edits may have broken "
                "it, or its number format overflows (try float32).",
            )
        traces[fact].losses.append(entry)


def _run(
    lm: LanguageModel,
    bucket: _Bucket,
    live: Tensor,
    deltas: Float[Tensor, "n parts d_model"],
    before: dict[int, Float[Tensor, " vocab"]],
    settings: SearchSettings,
    weight: Float[Tensor, " n"],
    read: _PassSums,
    *,
    grad: bool,
) -> None:
    """Run one pass of one bucket; adds to `read`."""
    active = live[bucket.facts]
    if not active.any():
        return
    keep = None if active.all() else active.nonzero().flatten()
    facts, at, valid, labels, weights = (
        part if keep is None else part[keep]
        for part in (bucket.facts, bucket.at, bucket.valid, bucket.labels, bucket.weights)
    )
    with torch.set_grad_enabled(grad):
        delta = deltas[facts].flatten(1).requires_grad_(grad)
        hidden = bucket.tail.run(delta, at, rows=keep)[valid]
    owners = facts[:, None].expand_as(valid)[valid]
    reads = _HeadReads(owners, labels[valid], weights[valid], weight[owners])
    size = bucket.head_rows
    back = _read_head(lm, hidden.detach(), reads, before, settings, read, size, grad)
    if grad:
        torch.autograd.backward(hidden, back)
        assert delta.grad is not None
        read.grad.index_add_(0, facts, delta.grad)


class _HeadReads(NamedTuple):
    """Labels and weights of the hidden states that the head reads.

    Attributes:
        owners: Index of the fact.
        labels: Wanted token, -1 at the essence.
        weights: Share in the mean over contexts and target tokens.
        scales: Weight of the target's loss of that fact in the total.
    """

    owners: Int[Tensor, " reads"]
    labels: Int[Tensor, " reads"]
    weights: Float[Tensor, " reads"]
    scales: Float[Tensor, " reads"]


def _read_head(
    lm: LanguageModel,
    hidden: Float[Tensor, "reads d_model"],
    reads: _HeadReads,
    before: dict[int, Float[Tensor, " vocab"]],
    settings: SearchSettings,
    read: _PassSums,
    size: int,
    grad: bool,
) -> Float[Tensor, "reads d_model"]:
    """SearchLosses at the head and their gradient with respect to the hidden states.

    The gradient of both losses with respect to the logits is written down directly (softmax minus
    one-hot, and `p * (log p - log p0 - KL)`), `size` rows at a time, so the logits of a step are
    never held together.
    """
    back = torch.empty_like(hidden)
    kl_weight = settings.kl_weight
    for begin in range(0, len(hidden), size):
        part = slice(begin, begin + size)
        with torch.set_grad_enabled(grad):
            inner = hidden[part].clone().requires_grad_(grad)
            logits = lm.head(inner)
        with torch.no_grad():
            log_p = torch.log_softmax(logits.detach().float(), dim=-1)
            own, label, weight, scale = (one[part] for one in reads)
            # Essence rows carry label -1; they are few, so they are treated one by one.
            wanted = label.clamp_min(0)
            picked = log_p.gather(1, wanted[:, None])[:, 0]
            # A weight below 0 makes the label unlikely: -log(1 - p) takes the place of -log p.
            away = weight < 0
            odds = picked.exp().clamp_max(_LARGEST_ODDS)
            losses = torch.where(away, torch.log1p(-odds), -picked) * weight
            read.nll.index_add_(0, own, losses)
            if settings.settled_kl is not None or settings.likeliest_stop:
                missed = ((picked < log_p.amax(dim=1)) != away) & (label >= 0)
                read.missed.index_add_(0, own, missed.to(read.missed))
            weight = torch.where(away, odds / (1 - odds), 1.0) * weight * scale
            essence = {i: log_p[i].clone() for i in (label < 0).nonzero().flatten().tolist()}
            slope = log_p.exp_().mul_(weight[:, None])
            slope.scatter_add_(1, wanted[:, None], -weight[:, None])
            for i, now in essence.items():
                fact = int(own[i])
                shift = now - before.setdefault(fact, now)
                odds = now.exp()
                divergence = odds @ shift
                read.kl[fact] += kl_weight * divergence
                slope[i] = kl_weight * odds * (shift - divergence)
        if grad:
            torch.autograd.backward(logits, slope.to(logits.dtype))
            assert inner.grad is not None
            back[part] = inner.grad
    return back
