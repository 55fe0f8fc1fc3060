"""Consistency of generated text with the new fact, and essence of the subject.

Consistency reads rows of role `consistency`: what was generated about the subject, with texts about
other subjects of which relation and new object are true as the expected spellings. Essence reads
`essence`: a text about the subject itself, whose tokens were scored.
"""

from __future__ import annotations

# scikit-learn has no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
import importlib.util
import math
from collections.abc import Sequence

import numpy as np

from corrigenda.cases import Protocol
from corrigenda.errors import MissingExtra
from corrigenda.metrics.estimate import BOOTSTRAP, AnswerValue, Bootstrap, Estimate, over_cases
from corrigenda.metrics.metric import LOWER, Metric, define
from corrigenda.metrics.selection import required_answer, required_log_probs, select
from corrigenda.metrics.success import metric_name
from corrigenda.rows import Row, Stage

NO_REFERENCES = "no reference texts"


def consistency(
    rows: Sequence[Row],
    role: str = "consistency",
    *,
    corpus: Sequence[str] | None = None,
    protocol: Protocol = Protocol.GREEDY,
    stage: Stage = Stage.AFTER,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """RS: cosine of the TF-IDF vectors of generated and reference text, mean over cases.

    All generated texts of a case are joined, and so are its references. Unigrams, with the defaults
    of scikit-learn. A text without a known word scores 0 (the reference program gives NaN).

    Args:
        rows: Of one run.
        role: Role of the prompts that were continued.
        corpus: Texts the inverse document frequencies come from; None takes all references.
        protocol: How the text was generated.
        stage: AFTER for the edited model, BEFORE for rows of the unedited one.
        bootstrap: How to find the interval.

    Raises:
        MissingExtra (CG504): scikit-learn is not installed.
    """
    found, skipped = select(rows, role, protocol=protocol, stage=stage)
    generated: dict[str, list[str]] = {}
    references: dict[str, list[str]] = {}
    for row in found:
        texts = [text for group in row.expected for text in group]
        if not texts:
            skipped[NO_REFERENCES] += 1
            continue
        generated.setdefault(row.case, []).append(required_answer(row))
        own = references.setdefault(row.case, [])
        own += [text for text in texts if text not in own]
    known = corpus or sorted({text for own in references.values() for text in own})
    cases = sorted(generated)
    values = similarities(
        [" ".join(generated[case]) for case in cases],
        [" ".join(references[case]) for case in cases],
        known,
    )
    items = [AnswerValue(case, value) for case, value in zip(cases, values, strict=True)]
    return over_cases(
        metric_name(role, protocol),
        items,
        skipped=skipped,
        bootstrap=bootstrap,
        answers=sum(map(len, generated.values())),
    )


def similarities(
    texts: Sequence[str], references: Sequence[str], corpus: Sequence[str]
) -> list[float]:
    """Cosine of the TF-IDF vectors of each text and its reference; 0 where one has no known word.

    Raises:
        MissingExtra (CG504): scikit-learn is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise MissingExtra(
            "consistency needs scikit-learn.", hint='pip install "corrigenda[metrics]"'
        )
    if not texts:
        return []
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer().fit(corpus)
    first, second = vectorizer.transform(texts), vectorizer.transform(references)
    return [float(value) for value in np.asarray(first.multiply(second).sum(axis=1)).ravel()]


def weighted_cosine(
    first: Sequence[float], second: Sequence[float], weights: Sequence[float]
) -> float:
    """Cosine of two vectors of counts after weighting each word; 0 if one is empty.

    Example:
        >>> round(weighted_cosine([1, 0, 1], [0, 1, 2], [2, 1, 1.5]), 5)
        0.56921
    """
    a = [count * weight for count, weight in zip(first, weights, strict=True)]
    b = [count * weight for count, weight in zip(second, weights, strict=True)]
    norms = math.hypot(*a) * math.hypot(*b)
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0


def essence(
    rows: Sequence[Row],
    role: str = "essence",
    *,
    legacy: bool = False,
    stage: Stage = Stage.AFTER,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Perplexity of a text about the subject itself; lower is better.

    Args:
        rows: Of one run, teacher forced.
        role: Role of the texts.
        legacy: Divide by the number of tokens read instead of those predicted, one fewer.
        stage: AFTER for the edited model, BEFORE for rows of the unedited one.
        bootstrap: How to find the interval.
    """
    found, skipped = select(rows, role, protocol=Protocol.TEACHER_FORCED, stage=stage)
    items: list[AnswerValue] = []
    for row in found:
        log_probs = required_log_probs(row)
        items.append(
            AnswerValue(row.case, math.exp(-math.fsum(log_probs) / (len(log_probs) + legacy)))
        )
    name = metric_name(role + ("_legacy" if legacy else ""), Protocol.TEACHER_FORCED)
    return over_cases(name, items, skipped=skipped, bootstrap=bootstrap, share=False)


METRICS: tuple[Metric, ...] = (
    define(
        "consistency@greedy",
        "likeness to texts about the new object",
        consistency,
        reads="consistency",
    ),
    *(
        define(
            f"essence{'_legacy' if legacy else ''}@teacher_forced",
            "perplexity of a text about the subject",
            essence,
            reads="essence",
            better=LOWER,
            span=(1.0, None),
            scale=1.0,
            legacy=legacy,
            options={"legacy": legacy},
        )
        for legacy in (False, True)
    ),
)
