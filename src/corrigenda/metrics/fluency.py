"""Fluency of generated text: weighted entropy of its bigrams and trigrams.

Words are those of NLTK's Treebank-style tokenizer, sentence by sentence. Sentences are found
without a trained model of abbreviations, so that nothing is downloaded: the full stop of "Mr." is a
word of its own here.
"""

from __future__ import annotations

# NLTK has no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
import importlib.util
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from corrigenda.cases import Protocol
from corrigenda.errors import MissingExtra
from corrigenda.metrics.estimate import (
    BOOTSTRAP,
    AnswerValue,
    Bootstrap,
    Estimate,
    difference,
    mean,
    over_cases,
)
from corrigenda.metrics.metric import AS_BEFORE, POSITIVE, Metric, define
from corrigenda.metrics.selection import as_before, required_answer, select
from corrigenda.metrics.success import metric_name
from corrigenda.rows import Row, Stage

if TYPE_CHECKING:
    from collections.abc import Callable

_BLANK_LINES = re.compile(r"\n\s*\n+")
_WEIGHTS = {2: 2 / 3, 3: 4 / 3}


def fluency(
    rows: Sequence[Row],
    role: str = "fluency",
    *,
    protocol: Protocol | None = None,
    legacy: bool = False,
    stage: Stage = Stage.AFTER,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """GE: weighted entropy of n-grams in bits, mean over texts of a case, then cases.

    Printed in papers times 100. More is not better beyond the unedited model's own value; see
    `fluency_change`. Numbers of texts of different length, or of other prompts, do not compare.

    Args:
        rows: Of one run.
        role: Role of the prompts that were continued.
        protocol: How the text was generated; None for greedy, of `legacy` for sampled texts.
        legacy: Score prompt and continuation together, with characters decomposed (NFKD) and blank
            lines removed, as the reference program does with texts of `Protocol.SAMPLED`.
        stage: AFTER for the edited model, BEFORE for rows of the unedited one.
        bootstrap: How to find the interval.

    Raises:
        MissingExtra (CG504): nltk is not installed.
    """
    protocol = protocol or (Protocol.SAMPLED if legacy else Protocol.GREEDY)
    found, skipped = select(rows, role, protocol=protocol, stage=stage)
    items = [
        AnswerValue(
            row.case,
            n_gram_entropy(
                reference_text(row.prompt, required_answer(row)) if legacy else required_answer(row)
            ),
        )
        for row in found
    ]
    name = metric_name(role + ("_legacy" if legacy else ""), protocol)
    return over_cases(name, items, skipped=skipped, bootstrap=bootstrap, share=False)


def fluency_change(
    rows: Sequence[Row],
    role: str = "fluency",
    *,
    protocol: Protocol | None = None,
    legacy: bool = False,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """`fluency` of the edited model minus that of the unedited one; about 0 is best.

    Args and errors are those of `fluency`.
    """
    protocol = protocol or (Protocol.SAMPLED if legacy else Protocol.GREEDY)
    after = fluency(rows, role, protocol=protocol, legacy=legacy, bootstrap=bootstrap)
    own = as_before([row for row in rows if row.role.startswith(role)])
    before = fluency(
        own, role, protocol=protocol, legacy=legacy, stage=Stage.BEFORE, bootstrap=bootstrap
    )
    name = metric_name(f"{role}_change" + ("_legacy" if legacy else ""), protocol)
    return difference(name, after, before)


def n_gram_entropy(text: str) -> float:
    """Return (1/3) H_2 + (2/3) H_3 of a text's words, in bits.

    H_n = -sum f log2 f over the relative frequencies f of n-grams; 0 for texts of fewer words. The
    published weights 2/3 and 4/3 are averaged over the two n.

    Raises:
        MissingExtra (CG504): nltk is not installed.

    Example:
        >>> round(n_gram_entropy("a b a b c"), 6)
        1.556642
    """
    found = split_words(text)
    return mean(weight * _entropy(found, n) for n, weight in _WEIGHTS.items())


def ceiling(num_words: int) -> float:
    """Return the maximum of `n_gram_entropy` for a text of so many words, in bits.

    Example:
        >>> round(ceiling(100), 3)
        6.62
    """
    return mean(weight * math.log2(max(1, num_words - n + 1)) for n, weight in _WEIGHTS.items())


def split_words(text: str) -> list[str]:
    """Split a text into words and punctuation marks as the Penn Treebank does.

    Raises:
        MissingExtra (CG504): nltk is not installed.
    """
    return _load_tokenizer()(text)


def reference_text(prompt: str, answer: str) -> str:
    """Return the text that the reference program scores: with the prompt, NFKD, no blank lines."""
    return _BLANK_LINES.sub("\n", unicodedata.normalize("NFKD", prompt + answer))


@cache
def _load_tokenizer() -> Callable[[str], list[str]]:
    if importlib.util.find_spec("nltk") is None:
        raise MissingExtra("fluency needs nltk.", hint='pip install "corrigenda[metrics]"')
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    sentences, tokens = PunktSentenceTokenizer(), NLTKWordTokenizer()
    return lambda text: [
        word for sentence in sentences.tokenize(text) for word in tokens.tokenize(sentence)
    ]


def _entropy(found: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(found[i:] for i in range(n)), strict=False))
    total = counts.total()
    return -math.fsum(c / total * math.log2(c / total) for c in counts.values()) + 0.0


METRICS: tuple[Metric, ...] = (
    *(
        define(
            metric_name("fluency", protocol),
            "entropy of bigrams and trigrams, in bits",
            fluency,
            reads="fluency",
            better=AS_BEFORE,
            span=POSITIVE,
            options={"protocol": protocol},
        )
        for protocol in (Protocol.GREEDY, Protocol.SAMPLED)
    ),
    define(
        metric_name("fluency_legacy", Protocol.SAMPLED),
        "entropy of bigrams and trigrams, as published",
        fluency,
        reads="fluency",
        better=AS_BEFORE,
        span=POSITIVE,
        legacy=True,
        options={"protocol": Protocol.SAMPLED, "legacy": True},
    ),
    define(
        "fluency_change@greedy",
        "fluency less that of the unedited model",
        fluency_change,
        reads="fluency",
        better=AS_BEFORE,
        span=(None, None),
        reference=0.0,
    ),
)
