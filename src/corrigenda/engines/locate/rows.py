"""Rows of a target search, tokens up to the subject, and what is captured at their ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.engines.locate.contexts import Contexts
from corrigenda.engines.locate.records import SearchRow
from corrigenda.errors import EmptyTarget
from corrigenda.facts import Fact, Span
from corrigenda.lm.kv_cache import pad_id
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Point, Site, Tokens, value, write
from corrigenda.lm.spans import Encoded, encode, encode_fact, encode_turn

_CAPTURE_TOKENS = 4096
_PULL_BACK = 1e-3


def encode_in_contexts(lm: LanguageModel, fact: Fact, contexts: Contexts) -> list[Encoded]:
    """Encode one fact, target included, after every prefix, and in the chat form where wanted.

    The labels of the chat form begin at the subject of the sentence that answers: an edit at the
    subject that is to say another target learns to go on naming the subject.

    Raises:
        AmbiguousSubject (CG104): the fact names no subject.
        SubjectNotFound (CG103), PromptTooLong (CG105): as `corrigenda.lm.spans.encode`.
        BadConfig (CG502): the chat form of a model without a chat template.
    """
    fact.span  # noqa: B018 - raises where the subject is missing or ambiguous
    found = [encode_fact(lm, fact, prefix=prefix) for prefix in contexts.prefixes]
    if contexts.chat:
        found.append(
            encode_turn(
                lm,
                fact.prompt,
                target=fact.target,
                subject=fact.span,
                separator=fact.separator,
                labels="subject",
                where=fact.label,
            )
        )
    return found


def rewrite_rows(
    lm: LanguageModel,
    facts: Sequence[Fact],
    contexts: Contexts,
    owners: Sequence[int] | None = None,
    *,
    suppress: bool = False,
) -> list[SearchRow]:
    """Make the rows of the target search: each fact in every context, and its essence prompt.

    With `owners`, the number of a vector for each fact, facts may share a vector: anchor and
    essence are then those of the fact whose clean prompt comes first in the order of token ids.

    With `suppress` a fact with `erase` gets rows that make its answer `before` unlikely.

    The essence prompt is "<subject> is a", cut after the subject: its loss is read at the subject's
    last token, and a causal model does not see the words after it.

    Raises:
        AmbiguousSubject, SubjectNotFound, PromptTooLong: see `encode_in_contexts`.
        EmptyTarget (CG102): an answer to make unlikely that is not given.
    """
    owners = range(len(facts)) if owners is None else owners
    signs = [-1.0 if suppress and fact.erase else 1.0 for fact in facts]
    encoded = [
        encode_in_contexts(lm, fact if sign > 0 else _forgotten(fact), contexts)
        for fact, sign in zip(facts, signs, strict=True)
    ]
    leaders: dict[int, int] = {}
    for index in sorted(range(len(facts)), key=lambda one: (encoded[one][0].ids, one)):
        leaders.setdefault(owners[index], index)
    rows: list[SearchRow] = []
    for index, fact in enumerate(facts):
        owner, leads = owners[index], leaders[owners[index]] == index
        for context, one in enumerate(encoded[index]):
            rows.append(
                SearchRow(
                    fact=owner,
                    ids=tuple(one.ids[:-1]),
                    start=_subject_end(one),
                    reads=tuple(one.reads),
                    labels=one.target_ids,
                    anchor=leads and context == 0,
                    weight=signs[index] * contexts.loss_weights[context],
                )
            )
        if not leads:
            continue
        subject = fact.subject or ""
        essence = encode(lm, f"{subject} is a", subject=Span(0, len(subject)), where=fact.label)
        start = _subject_end(essence)
        rows.append(SearchRow(owner, tuple(essence.ids[: start + 1]), start, (start,), ()))
    return rows


def _forgotten(fact: Fact) -> Fact:
    """Return a fact whose target is the answer to forget."""
    if not fact.before:
        raise EmptyTarget(
            f'the answer to forget of "{fact.prompt}" is not given.',
            where=fact.label,
            hint='Give `before`, or choose erasure="refuse".',
        )
    return replace(fact, target=fact.before)


def subject_tokens(
    lm: LanguageModel, facts: Sequence[Fact], contexts: Contexts
) -> list[tuple[int, ...]]:
    """Return token ids up to the subject's last token, in each context; facts outermost."""
    return [
        tuple(one.ids[: _subject_end(one) + 1])
        for fact in facts
        for one in encode_in_contexts(lm, fact, contexts)
    ]


def capture_last(
    lm: LanguageModel, sequences: Sequence[tuple[int, ...]], points: Sequence[Point]
) -> dict[Point, Float[Tensor, "batch d"]]:
    """Capture values at the last token of each sequence, in the order given; float32.

    Equal sequences run once and batches are sorted by length, so neither repetition nor padding
    costs, and the result does not depend on the order of the sequences.
    """
    unique = sorted(set(sequences), key=lambda ids: (len(ids), ids))
    place = {ids: index for index, ids in enumerate(unique)}
    order = torch.tensor([place[ids] for ids in sequences], device=lm.device)
    parts: dict[Point, list[Tensor]] = {point: [] for point in points}
    begin = 0
    while begin < len(unique):
        end = begin + 1
        while end < len(unique) and len(unique[end]) * (end + 1 - begin) <= _CAPTURE_TOKENS:
            end += 1
        batch = unique[begin:end]
        tokens = Tokens.pad(batch, pad_id(lm)).to(lm.device)
        at = torch.tensor([len(ids) - 1 for ids in batch], device=lm.device)
        for point, values in lm.tap(tokens, list(points), positions=at).items():
            parts[point].append(values.float())
        begin = end
    return {point: torch.cat(values)[order].clone() for point, values in parts.items()}


def residuals_at_output(
    lm: LanguageModel,
    site: Site,
    clean: Sequence[tuple[int, ...]],
    residuals: Float[Tensor, "n d_model"],
) -> Float[Tensor, "n d_model"]:
    """Express wanted changes of the residual stream at the down projection's output; float64.

    They are the same unless there is a norm between the two (Gemma 2 and 3, OLMo 2). There the
    norm multiplies each coordinate by `gain / rms`, read off as `write / value` at the same token;
    the wanted change is divided by it, with coordinates damped that the norm hardly lets through.
    """
    gain = norm_gain(lm, site, clean)
    if gain is None:
        return residuals
    floor = _PULL_BACK * gain.square().mean(dim=1, keepdim=True)
    return residuals * gain / (gain.square() + floor)


def norm_gain(
    lm: LanguageModel, site: Site, clean: Sequence[tuple[int, ...]]
) -> Float[Tensor, "n d_model"] | None:
    """Return `write / value` at the subject's last token by coordinate; None without a norm.

    The norm is one between the down projection and the residual stream; float64.
    """
    captured = capture_last(lm, clean, [value(site), write(site)])
    before, after = captured[value(site)].double(), captured[write(site)].double()
    if torch.equal(before, after):
        return None
    return after / torch.where(before == 0, torch.ones_like(before), before)


def _subject_end(encoded: Encoded) -> int:
    assert encoded.subject_last is not None, "encoded with a subject"
    return encoded.subject_last
