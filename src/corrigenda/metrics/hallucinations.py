"""Scores of HalluEditBench: means over the facts of a topic, then over topics.

Rows are natural answers. One is right where the expected answer occurs in it word by word, or it in
the expected one; a letter is the first capital A to D that stands alone, and yes or no the first of
these words. What is not right by these rules is right where a judge said so. The published rule
compares characters, so that an empty answer is right everywhere and "No" is in "Norway".
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from corrigenda.cases import NATURAL, Protocol
from corrigenda.metrics.estimate import (
    BOOTSTRAP,
    AnswerValue,
    Bootstrap,
    Estimate,
    Numbers,
    pool,
    statistic,
)
from corrigenda.metrics.locality import one_holds_other
from corrigenda.metrics.metric import Metric, define
from corrigenda.metrics.natural import read_verdict
from corrigenda.metrics.selection import required_answer, select, tag_of
from corrigenda.metrics.strings import contains
from corrigenda.rows import Row

_LETTER = re.compile(r"(?<![A-Za-z'])([A-D])(?![A-Za-z'])")
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


def is_right(row: Row) -> float | str:
    """Whether an answer is right by the rules above, 1 or 0; or why that cannot be told.

    Example:
        >>> said = {"case": "1", "role": "reliability", "protocol": Protocol.GENERATE}
        >>> texts = ("It is Norway", "No")
        >>> rows = [Row(answer=one, expected=[["Norway"]], **said) for one in texts]
        >>> [is_right(row) for row in rows]
        [1.0, 0.0]
    """
    if not row.expected:
        return "no expected answer"
    text = required_answer(row)
    wanted = row.expected[0]
    if row.role.endswith("/choice"):
        found = _LETTER.search(text)
        right = found is not None and found.group(1) in wanted
    elif {one.lower() for one in wanted} <= {"yes", "no"}:
        found = _YES_NO.search(text)
        right = found is not None and found.group(1).lower() == wanted[0].lower()
    else:
        right = any(contains(text, one) or contains(one, text) for one in wanted)
    return float(right or (row.verdict is not None and read_verdict(row.verdict) is True))


def topic_score(
    rows: Sequence[Row],
    name: str,
    role: str,
    *,
    protocol: Protocol,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Mean over the facts of a topic, then over topics; facts without topic are one of their own.

    Args:
        rows: Of one run.
        name: Name of the score.
        role: Role, or family of roles; its kinds weigh the same within a fact. Of locality the
            answer is held against that of the unedited model.
        protocol: `generate` or `chat`.
        bootstrap: How to find the interval.
    """
    found, skipped = select(rows, role, protocol=protocol)
    decide = one_holds_other if role == "locality" else is_right
    items: list[AnswerValue] = []
    topics: dict[str, str] = {}
    for row in found:
        value = decide(row)
        if isinstance(value, str):
            skipped[value] += 1
            continue
        topics[row.case] = tag_of(row, "topic") or ""
        items.append(AnswerValue(row.case, value, row.role.removeprefix(role)))
    by_case = pool(items)
    places = {topic: float(place) for place, topic in enumerate(sorted(set(topics.values())))}
    return statistic(
        f"{name}@{protocol}",
        {case: (value, places[topics[case]]) for case, value in by_case.items()},
        _mean_of_topics,
        items=len(items) if not bootstrap.hierarchical else len(by_case),
        skipped=skipped,
        bootstrap=bootstrap,
        by_case=by_case,
    )


def _mean_of_topics(values: Numbers) -> Numbers:
    """Return the mean over topics of the mean over their cases; columns are value and topic."""
    import numpy as np

    topics = np.unique(values[..., 1])
    held = values[..., 1:] == topics
    count = held.sum(axis=1)
    total = np.where(held, values[..., :1], 0.0).sum(axis=1)
    means = np.divide(total, count, out=np.full_like(total, math.nan), where=count > 0)
    return np.nanmean(means, axis=1)


_SCORES = {
    "hallu_efficacy": ("reliability", "the true answer, topic by topic"),
    "hallu_generalization": ("generalization", "five other forms of the question"),
    "hallu_portability": ("portability", "questions of two to six hops"),
    "hallu_locality": ("locality", "answers to other questions, as before"),
    "hallu_robustness": ("doubted", "the answer is upheld when doubted"),
}

METRICS: tuple[Metric, ...] = tuple(
    define(
        f"{name}@{protocol}",
        title,
        topic_score,
        name,
        role,
        reads=role,
        options={"protocol": protocol},
    )
    for name, (role, title) in _SCORES.items()
    for protocol in NATURAL
)
