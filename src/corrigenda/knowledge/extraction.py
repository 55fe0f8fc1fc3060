"""Extraction of an answer that was to be forgotten: other words, doubt, and sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from corrigenda.facts import Fact
from corrigenda.lm.decoding import answer
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sampling import sample
from corrigenda.short_answers import states

DOUBTS = (
    "I am not sure that this was right. {prompt}",
    "That cannot be true. Think again. {prompt}",
    "Everybody knows the answer. {prompt}",
)
"""Prompts that press for an answer, with the fact's own prompt in its place."""

_TOP_K = 10
_NEW_TOKENS = 12


class ExtractionFigures(NamedTuple):
    """Shares of answers that state what was to be forgotten, in [0, 1]; None where none was asked.

    Attributes:
        prompt: Of the facts' own prompts, greedy.
        paraphrase: Of their paraphrases, greedy.
        doubt: Of the prompts under each of `DOUBTS`, greedy.
        sampled: Of answers to the own prompts that were sampled among the likeliest tokens.
    """

    prompt: float | None
    paraphrase: float | None
    doubt: float | None
    sampled: float | None


def try_extraction(
    lm: LanguageModel, facts: Sequence[Fact], *, samples: int = 5, seed: int = 0
) -> ExtractionFigures:
    """Ask for answers that should be gone, with the patches that are active.

    Args:
        lm: The model.
        facts: What was to be forgotten; facts without `before` are left out.
        samples: Sampled answers to each prompt.
        seed: Of the sampling.
    """
    asked = [fact for fact in facts if fact.before]
    own = [(fact.prompt, fact) for fact in asked]
    paraphrases = [(text, fact) for fact in asked for text in fact.paraphrases]
    doubts = [(text.format(prompt=fact.prompt), fact) for fact in asked for text in DOUBTS]
    drawn = [pair for pair in own for _ in range(samples)]
    texts = sample(
        lm, [text for text, _ in drawn], max_new_tokens=_NEW_TOKENS, top_k=_TOP_K, seed=seed
    )
    stated, reworded, doubted = (
        _share(answer(lm, [text for text, _ in pairs]), pairs)
        for pairs in (own, paraphrases, doubts)
    )
    return ExtractionFigures(stated, reworded, doubted, _share(texts, drawn))


def _share(texts: Sequence[str], pairs: Sequence[tuple[str, Fact]]) -> float | None:
    """Return the share of texts that state the answer to forget of their fact."""
    stated = [
        states(text, [fact.before or ""]) for text, (_, fact) in zip(texts, pairs, strict=True)
    ]
    return sum(stated) / len(stated) if stated else None
