"""The locate-then-edit pipeline: encode, capture at the subject's last token, search targets, solve, write down.

Shared by every method that writes into down projections. Contexts are prefixes put before a prompt by plain
concatenation; the first is always the empty one, the clean prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.errors import BadConfig, PromptTooLong
from corrigenda.facts import Fact, Span
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Point, Tokens
from corrigenda.lm.spans import Encoded, encode, encode_fact
from corrigenda.methods._target_search import Row

_CAPTURE_TOKENS = 4096


def encode_in_contexts(
    lm: LanguageModel, fact: Fact, prefixes: Sequence[str]
) -> list[Encoded]:
    """Encode one fact, target included, behind every prefix.

    Raises:
        AmbiguousSubject (CG104): the fact names no subject.
        PromptTooLong (CG105): with its longest prefix it does not fit the model's context.
        BadConfig (CG502): the first prefix is not the empty one.
    """
    if not prefixes or prefixes[0] != "":
        raise BadConfig(
            "the first context must be the empty prefix: anchors are read at the clean prompt.",
            where="contexts",
            hint='Put "" first.',
        )
    fact.span  # noqa: B018 - raises where the subject is missing or ambiguous
    encoded = [encode_fact(lm.tokenizer, fact, prefix=prefix) for prefix in prefixes]
    longest = max(len(one.ids) for one in encoded) - 1
    if longest > lm.context_length:
        raise PromptTooLong(
            f"with its prefix and target the prompt has {longest} tokens; the model reads "
            f"{lm.context_length}.",
            where=fact.label,
            hint="Shorten the prompt or the contexts.",
        )
    return encoded


def rewrite_rows(
    lm: LanguageModel, facts: Sequence[Fact], prefixes: Sequence[str]
) -> list[Row]:
    """Rows of the target search: each fact behind every prefix, plus its essence prompt.

    The essence prompt is "<subject> is a", cut after the subject: its loss is read at the subject's last token, and a
    causal model does not see the words behind it.

    Raises:
        AmbiguousSubject, PromptTooLong, BadConfig: see `encode_in_contexts`.
    """
    rows: list[Row] = []
    for index, fact in enumerate(facts):
        for context, one in enumerate(encode_in_contexts(lm, fact, prefixes)):
            labels = tuple(one.ids[position] for position in one.labels)
            reads = tuple(one.prompt_last + j for j in range(len(labels)))
            assert one.subject_last is not None
            rows.append(
                Row(index, tuple(one.ids[:-1]), one.subject_last, reads, labels, context == 0)
            )
        subject = fact.subject or ""
        essence = encode(lm.tokenizer, f"{subject} is a", subject=Span(0, len(subject)))
        assert essence.subject_last is not None
        start = essence.subject_last
        rows.append(Row(index, tuple(essence.ids[: start + 1]), start, (start,), ()))
    return rows


def subject_tokens(
    lm: LanguageModel, facts: Sequence[Fact], prefixes: Sequence[str]
) -> list[tuple[int, ...]]:
    """Token ids up to the subject's last token, for each fact behind each prefix (facts outermost)."""
    return [
        tuple(one.ids[: (one.subject_last or 0) + 1])
        for fact in facts
        for one in encode_in_contexts(lm, fact, prefixes)
    ]


def capture_last(
    lm: LanguageModel, sequences: Sequence[tuple[int, ...]], points: Sequence[Point]
) -> dict[Point, Float[Tensor, "batch d"]]:
    """Values at the last token of each sequence, in the order given; float32.

    Equal sequences run once, and batches are sorted by length, so neither repetition nor padding costs.
    """
    unique = sorted(set(sequences), key=lambda ids: (len(ids), ids))
    place = {ids: index for index, ids in enumerate(unique)}
    order = torch.tensor([place[ids] for ids in sequences], device=lm.device)
    pad = lm.tokenizer.pad_token_id or 0
    parts: dict[Point, list[Tensor]] = {point: [] for point in points}
    begin = 0
    while begin < len(unique):
        end = begin + 1
        while end < len(unique) and len(unique[end]) * (end + 1 - begin) <= _CAPTURE_TOKENS:
            end += 1
        batch = unique[begin:end]
        tokens = Tokens.pad([list(ids) for ids in batch], pad).to(lm.device)
        at = torch.tensor([len(ids) - 1 for ids in batch], device=lm.device)
        for point, values in lm.tap(tokens, list(points), positions=at).items():
            parts[point].append(values.float())
        begin = end
    return {point: torch.cat(values)[order].clone() for point, values in parts.items()}
