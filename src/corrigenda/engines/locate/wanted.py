"""Targets of a batch of facts, with the options that change them: merged by subject, of one length.

Merged: facts of one subject have one key, so that only one value can be written for them; it is
searched for all of them together. Of one length: every solved value is brought to the mean length
of values that were solved on the unedited model, the anchor.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median, stdev
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.engines.locate.contexts import Contexts
from corrigenda.engines.locate.records import EntryRole, SearchSettings, SearchTrace, Targets
from corrigenda.engines.locate.rows import capture_last, rewrite_rows, subject_tokens
from corrigenda.engines.locate.target_search import find_targets
from corrigenda.errors import NotEnoughFacts
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Point, Site, value, write
from corrigenda.lm.sites import state as residual_stream
from corrigenda.statistics import cache

_FORMAT = 1
_ANCHOR_SEED = 0
_DROPPED = 0.05
_TINY = 1e-10
_MANY = 4
# Outside of these the anchor belongs to other facts than those at hand.
_USUAL_FACTORS = (0.5, 2.0)
_BARE = Contexts(("",))


class NormAnchor(NamedTuple):
    """Length of values solved on the unedited model, at one layer, under some settings.

    Attributes:
        length: Mean of `||v + delta||`, the longest twentieth left out; in units of the output.
        error: Standard error of that mean.
        untrimmed: Mean of all.
        settings: Hash of what it depends on: layer, role, settings of the search, number of facts.
    """

    length: float
    error: float
    untrimmed: float
    settings: str


class ScaledTargets(NamedTuple):
    """Targets that were brought to one length.

    Attributes:
        targets: With deltas changed; those of facts left out are zero.
        factors: `length / ||v + delta||` of each fact.
        skipped: Facts that were left out because their value was too long.
    """

    targets: Targets
    factors: list[float]
    skipped: list[int]

    def describe(self, facts: Sequence[Fact]) -> list[str]:
        """Return notices: facts left out, and an anchor that does not suit the facts."""
        found = [
            f"{facts[index].label}: left out; its value is longer than the anchor allows."
            for index in self.skipped
        ]
        middle = median(self.factors)
        if not _USUAL_FACTORS[0] <= middle <= _USUAL_FACTORS[1]:
            found.append(
                f"The anchor does not suit these facts: their values were multiplied by "
                f"{middle:.2g} in the median."
            )
        return found


def search_targets(
    lm: LanguageModel,
    facts: Sequence[Fact],
    contexts: Contexts,
    *,
    layer: int,
    role: EntryRole,
    settings: SearchSettings,
    merged: bool = False,
    suppress: bool = False,
) -> Targets:
    """Search one vector per fact, or with `merged` one for all facts of a subject.

    The loss of a merged vector is the mean over its facts; essence and decay count once. Its anchor
    is the clean prompt that comes first in the order of token ids; each fact's target is its own
    clean vector plus the common delta.

    Args:
        lm: The model, as it is now.
        facts: The facts.
        contexts: Contexts of their prompts.
        layer: Block at which the delta enters.
        role: Where it enters, see `find_targets`.
        settings: Settings of the search.
        merged: Whether facts of one subject share one vector.
        suppress: Whether answers to forget become unlikely, in place of the refusal likely.

    Raises:
        NotEnoughFacts (CG106): merged facts with one prompt and different targets.
        CorrigendaError: see `rewrite_rows` and `find_targets`.

    Reference: MEMIT-Merge (Dong et al. 2025) for `merged`; weights within a group are ours.
    """
    owners = group_by_subject(lm, facts) if merged else list(range(len(facts)))
    first = {owner: fact.label for owner, fact in zip(owners[::-1], facts[::-1], strict=True)}
    found = find_targets(
        lm,
        rewrite_rows(lm, facts, contexts, owners, suppress=suppress),
        layer=layer,
        role=role,
        settings=settings,
        names=[first[owner] for owner in range(len(first))],
    )
    if len(first) == len(facts):
        return found
    clean = subject_tokens(lm, facts, _BARE)
    points = _entry_points(layer, role)
    captured = capture_last(lm, clean, points)
    own = torch.cat([captured[point] for point in points], dim=1)
    alone = torch.tensor([owners.count(owner) == 1 for owner in owners], device=own.device)
    anchors = torch.where(alone[:, None], found.anchors[owners], own)
    return Targets(anchors, found.deltas[owners], [found.traces[owner] for owner in owners])


def group_by_subject(lm: LanguageModel, facts: Sequence[Fact]) -> list[int]:
    """Return the number of each fact's group: facts whose subject and last token are the same.

    Raises:
        NotEnoughFacts (CG106): two facts of a group have one prompt and different targets.
    """
    numbers: dict[tuple[str, int], int] = {}
    targets: dict[tuple[str, bool], Fact] = {}
    owners = []
    for fact, ids in zip(facts, subject_tokens(lm, facts, _BARE), strict=True):
        other = targets.setdefault((fact.prompt, fact.chat), fact)
        if other.target != fact.target:
            raise NotEnoughFacts(
                "two facts ask for different targets of one prompt; no value can give both.",
                where=f"{other.label} and {fact.label}",
                hint="Drop one of them.",
            )
        subject = unicodedata.normalize("NFKC", fact.subject or "")
        owners.append(numbers.setdefault((subject, ids[-1]), len(numbers)))
    return owners


def describe_merged(facts: Sequence[Fact], traces: Sequence[SearchTrace]) -> list[str]:
    """Return notices on vectors of more than four facts that ended at their longest."""
    found = []
    for trace in {id(one): one for one in traces}.values():
        own = [fact for fact, one in zip(facts, traces, strict=True) if one is trace]
        if trace.at_clamp and len(own) > _MANY:
            found.append(
                f"{own[0].subject}: the value of {len(own)} facts is as long as `clamp` allows; a "
                "larger one may write more of them."
            )
    return found


def scale_targets(
    targets: Targets, outputs: Float[Tensor, "n d_model"], length: float, most: float
) -> ScaledTargets:
    """Bring every solved value `v + delta` to one length; v is the feed-forward block's output.

    Values longer than `most` times the length are left out: their delta is zero. Of two deltas the
    last, that of the feed-forward block, changes.

    Args:
        targets: Result of the search.
        outputs: v of each fact, at the subject's last token of the clean prompt.
        length: The anchor.
        most: Above how many anchors a value is left out.

    Reference: NAS (Liu et al. 2026) and its code, which leaves out what the paper does not mention.
    """
    width = outputs.shape[1]
    delta = targets.deltas[:, -width:].double()
    solved = outputs.double() + delta
    norms = solved.norm(dim=1)
    skipped = norms > most * length
    scaled = length * solved / (norms + _TINY)[:, None] - outputs.double()
    new = torch.where(skipped[:, None], torch.zeros_like(scaled), scaled).to(targets.deltas)
    deltas = torch.cat([targets.deltas[:, :-width], new], dim=1)
    places = skipped.nonzero().flatten().tolist()
    traces = list(targets.traces)
    for place in places:
        traces[place] = replace(traces[place], skipped=True)
    factors = (length / norms.clamp_min(_TINY)).tolist()
    return ScaledTargets(Targets(targets.anchors, deltas, traces), factors, places)


def read_outputs(
    lm: LanguageModel, facts: Sequence[Fact], targets: Targets, layer: int, role: EntryRole
) -> Float[Tensor, "n d_model"]:
    """Return what the feed-forward block gives at each fact's subject, in the clean prompt."""
    if role != "state":
        return targets.anchors[:, -lm.d_model :]
    point = write(Site(layer))
    return capture_last(lm, subject_tokens(lm, facts, _BARE), [point])[point]


def measure_anchor(
    lm: LanguageModel, *, layer: int, role: EntryRole, settings: SearchSettings, count: int
) -> NormAnchor:
    """Measure the length of solved values on the unedited model; cached by content.

    They are the values of `count` counterfactual facts of the almanac, drawn with a fixed seed and
    searched in the bare prompt alone. The longest twentieth is left out.
    """
    from corrigenda.almanac.exam import draw_edits
    from corrigenda.almanac.world import load_world

    wanted = hash_search(layer, role, settings, count)
    name = f"anchor-{cache.hash_settings({'model': lm.recall_digest(), 'settings': wanted})}.jsonl"
    kept = cache.read_texts(name)
    if kept is not None:
        return NormAnchor(*json.loads(kept[0]))
    facts = [one.fact for one in draw_edits(load_world(), count, seed=_ANCHOR_SEED)]
    found = search_targets(lm, facts, _BARE, layer=layer, role=role, settings=settings)
    outputs = read_outputs(lm, facts, found, layer, role)
    norms = (outputs.double() + found.deltas[:, -lm.d_model :].double()).norm(dim=1).tolist()
    anchor = trimmed_anchor(norms, wanted)
    cache.write_texts(name, [json.dumps(anchor)])
    return anchor


def trimmed_anchor(norms: Sequence[float], settings: str = "") -> NormAnchor:
    """Return the mean of lengths without the longest twentieth, rounded down.

    Example:
        >>> trimmed_anchor([1.0] * 20 + [100.0]).length
        1.0
    """
    kept = sorted(norms)[: len(norms) - int(_DROPPED * len(norms))]
    error = stdev(kept) / len(kept) ** 0.5 if len(kept) > 1 else 0.0
    return NormAnchor(sum(kept) / len(kept), error, sum(norms) / len(norms), settings)


def hash_search(layer: int, role: EntryRole, settings: SearchSettings, count: int) -> str:
    """Return a hash of what an anchor depends on besides the model."""
    content: Mapping[str, object] = {
        "format": _FORMAT,
        "layer": layer,
        "role": role,
        "search": settings._asdict(),
        "count": count,
    }
    return cache.hash_settings(content)


def _entry_points(layer: int, role: EntryRole) -> list[Point]:
    if role == "state":
        return [residual_stream(layer)]
    if role == "value":
        return [value(Site(layer))]
    return [value(Site(layer, "attn.out")), value(Site(layer))]
