"""Target search: one vector per fact that makes the target likely, for all facts at once.

The vector enters at one position (the subject's last token) of one block, so each step runs only
the later blocks, only from that position on (`corrigenda.lm.tail`), and the vocabulary head only
where a label is read. Rows of different facts never meet in a loss, and Adam is elementwise, so
every fact evolves as if it were searched alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.engines.locate.records import (
    EntryRole,
    SearchLosses,
    SearchRow,
    SearchSettings,
    SearchTrace,
    Targets,
)
from corrigenda.engines.locate.search_size import token_bytes
from corrigenda.engines.locate.target_cache import current_targets
from corrigenda.engines.locate.target_pass import PassSums, make_buckets
from corrigenda.errors import NonFinite
from corrigenda.lm.footprint import FLOAT, vocabulary_of
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.tail import memory_budget
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

    Inside `target_cache.keep_targets`, facts that were searched already are not searched again.

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

    def search(rows: Sequence[SearchRow], names: Sequence[str]) -> Targets:
        return _find(lm, rows, layer=layer, role=role, settings=settings, names=names)

    cache = current_targets()
    if cache is None or lm.patches or not names:
        return search(rows, names)
    origin = (lm.recall_digest(), str(lm.dtype), layer, role, settings)
    return cache.find(origin, rows, names, search)


def _find(
    lm: LanguageModel,
    rows: Sequence[SearchRow],
    *,
    layer: int,
    role: EntryRole,
    settings: SearchSettings,
    names: Sequence[str],
) -> Targets:
    """Search all facts; see `find_targets`."""
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
    buckets = make_buckets(lm, rows, layer, role, contexts)
    for bucket in buckets:
        for i, row in enumerate(bucket.rows):
            if row.anchor:
                anchors[row.fact] = bucket.tail.entry[i].float().view_as(anchors[row.fact])
    live = sorted({row.fact for row in rows})
    now = torch.tensor(live, device=lm.device)
    radius = settings.clamp * anchors.norm(dim=2)
    lengths = anchors.square().sum(dim=2)
    tiny = torch.finfo(lengths.dtype).tiny
    decay = settings.weight_decay / lengths.clamp_min(tiny)
    first, second = torch.zeros_like(deltas), torch.zeros_like(deltas)
    weight, clamped = deltas.new_ones(len(names)), deltas.new_zeros(len(names))
    for step in range(1, settings.steps + 1):
        last = step == settings.steps
        read = PassSums.empty(deltas)
        for bucket in buckets:
            bucket.run(set(live), deltas, settings, weight, read, grad=not last)
        norms = deltas.norm(dim=2)
        shrink = (decay * norms).sum(dim=1)
        total = weight * read.nll + read.kl + shrink
        if settings.settled_kl is not None:
            weight = torch.where(read.missed == 0, settings.settled_weight, 1.0)
        # All that is decided on the host is read in one go: on a GPU each reading is a wait.
        columns = (total, read.nll, read.kl, shrink, read.missed, clamped)
        table = torch.stack(columns, dim=1)[now].tolist()
        found = {fact: _Readings(*line) for fact, line in zip(live, table, strict=True)}
        _record(traces, names, found, first=step == 1)
        course.report(step, traces)
        left = [fact for fact in live if not _is_done(traces[fact], found[fact], settings)]
        if last or not left:
            report_stage(_STAGE, course.before + settings.steps, course.total)
            break
        if left != live:
            live, now = left, torch.tensor(left, device=lm.device)
        # The gradient of a norm at zero is taken as zero.
        unit = deltas[now] / norms[now].clamp_min(tiny)[..., None]
        gradient = read.grad[now].view_as(unit) + decay[now, :, None] * unit
        first[now] = 0.9 * first[now] + 0.1 * gradient
        second[now] = 0.999 * second[now] + 0.001 * gradient.square()
        scale = (second[now].sqrt() / math.sqrt(1.0 - 0.999**step)).add_(1e-8)
        moved = deltas[now] - settings.learning_rate / (1.0 - 0.9**step) * first[now] / scale
        length = moved.norm(dim=2)
        beyond = length > radius[now]
        moved *= torch.where(beyond, radius[now] / length.clamp_min(tiny), 1.0)[..., None]
        deltas[now] = moved
        clamped[now] = beyond.any(dim=1).to(clamped)


class _Readings(NamedTuple):
    """What the host reads of one fact after a step.

    Attributes:
        total: Loss that is minimised.
        nll: Loss of the target.
        kl: Essence term.
        decay: Price of the length.
        missed: Reads at which the target is not the most likely token.
        clamped: Whether the step before was pulled back onto the ball: 1 or 0.
    """

    total: float
    nll: float
    kl: float
    decay: float
    missed: float
    clamped: float


def _record(
    traces: list[SearchTrace],
    names: Sequence[str],
    found: Mapping[int, _Readings],
    *,
    first: bool,
) -> None:
    for fact, one in found.items():
        trace = traces[fact]
        if not math.isfinite(one.total):
            raise NonFinite(
                f"the loss of the target search is {one.total} at step {len(trace.losses) + 1}.",
                where=str(names[fact]),
                hint="The model gives no finite probabilities here: earlier edits may have broken "
                "it, or its number format overflows (try float32).",
            )
        trace.losses.append(SearchLosses(one.total, one.nll, one.kl, one.decay))
        if not first:
            trace.at_clamp = bool(one.clamped)
            trace.clamped_steps += trace.at_clamp


def _is_done(trace: SearchTrace, found: _Readings, settings: SearchSettings) -> bool:
    """Note why a fact takes no further step, and whether it takes none."""
    if (found.nll if settings.stop_on == "nll" else found.total) < settings.stop_loss:
        trace.stop = "loss"
    hit = found.missed == 0
    if settings.likeliest_stop and hit:
        trace.likeliest += 1
        if trace.likeliest >= settings.likeliest_stop and trace.stop == "steps":
            trace.stop = "likeliest"
    if settings.settled_kl is not None and trace.stop == "steps":
        trace.settled = hit
        if hit and found.kl <= settings.settled_kl:
            trace.stop = "settled"
    return trace.stop != "steps"
