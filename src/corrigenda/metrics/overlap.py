"""Overlap of a natural answer with a reference: F1 of words, ROUGE, BLEU.

ROUGE is that of rouge-score (lower case, letters and digits, no stemming), BLEU that of NLTK. ROUGE
recall rewards length: a text that holds the reference has 1 whatever else it says, so recall and F1
are both there. An empty text has 0 everywhere.
"""

from __future__ import annotations

# rouge-score and NLTK have no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false, reportMissingImports=false
import importlib.util
from collections import Counter
from functools import cache
from typing import Any, Literal, NamedTuple

from corrigenda.errors import MissingExtra
from corrigenda.metrics.strings import normalise

RougeKind = Literal["rouge1", "rouge2", "rougeL"]
"""Unigrams, bigrams, longest common subsequence."""


class Rouge(NamedTuple):
    """Overlap with a reference, each in [0, 1]."""

    precision: float
    recall: float
    f1: float


def word_f1(text: str, reference: str) -> float:
    """F1 of the words that two texts have in common, as SQuAD counts them.

    Words are those of `strings.normalise`. Two texts without words agree.

    Example:
        >>> word_f1("Paris, France", "Paris")
        0.6666666666666666
    """
    given, wanted = normalise(text).split(), normalise(reference).split()
    if not (given and wanted):
        return float(given == wanted)
    common = (Counter(given) & Counter(wanted)).total()
    return 2 * common / (len(given) + len(wanted))


def rouge(text: str, reference: str, kind: RougeKind) -> Rouge:
    """ROUGE of a text against one reference.

    Raises:
        MissingExtra (CG504): rouge-score is not installed.

    Example:
        >>> rouge("he served for over ten years", "over a decade", "rouge1").recall
        0.3333333333333333
    """
    score = _load_rouge()(reference, text)[kind]
    return Rouge(float(score.precision), float(score.recall), float(score.fmeasure))


def bleu(text: str, reference: str, *, characters: bool = False) -> float:
    """BLEU of up to four-grams of a text against one reference.

    Args:
        text: What was generated.
        reference: What was expected.
        characters: Take characters for words and smooth nothing, as the program of UnKE does with
            raw strings: far higher, not to be compared with BLEU elsewhere. Else n-grams of words
            that do not occur count 0.1 (method 1 of Chen and Cherry 2014).

    Raises:
        MissingExtra (CG504): nltk is not installed.

    Example:
        >>> bleu("a b c d e", "a b c d e"), bleu("", "a b c d")
        (1.0, 0.0)
    """
    if importlib.util.find_spec("nltk") is None:
        raise MissingExtra("BLEU needs nltk.", hint='pip install "corrigenda[metrics]"')
    import warnings

    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    given = list(text) if characters else text.lower().split()
    wanted = list(reference) if characters else reference.lower().split()
    if not given:
        return 0.0
    smoothing = None if characters else SmoothingFunction().method1
    with warnings.catch_warnings():
        # Of a text without a four-gram in common, which has about 0.
        warnings.simplefilter("ignore", UserWarning)
        found: Any = sentence_bleu([wanted], given, smoothing_function=smoothing)
    return float(found)


@cache
def _load_rouge():  # noqa: ANN202 - rouge-score has no types
    if importlib.util.find_spec("rouge_score") is None:
        raise MissingExtra("ROUGE needs rouge-score.", hint='pip install "corrigenda[metrics]"')
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False).score
