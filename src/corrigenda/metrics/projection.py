"""Hit@k: whether the columns that an edit changed most read as the new answer.

The columns of the down projection that moved most are mapped through the unembedding; a hit is the
target's first token among the k highest of one of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from corrigenda.metrics.estimate import BOOTSTRAP, AnswerValue, Bootstrap, Estimate, over_cases
from corrigenda.metrics.metric import Metric, define
from corrigenda.metrics.selection import measurements
from corrigenda.rows import Measurement


def moved_columns(original: ArrayLike, edited: ArrayLike, *, count: int = 5) -> list[int]:
    """The columns whose change has the largest norm, the largest first.

    Args:
        original: Weight `(d_out, d_in)` of a down projection; a column is a value vector.
        edited: The same after the edit.
        count: How many.
    """
    change = np.asarray(edited, np.float64) - np.asarray(original, np.float64)
    norms = np.linalg.norm(change, axis=0)
    return [int(column) for column in np.argsort(-norms, kind="stable")[:count]]


def token_ranks(
    weight: ArrayLike, columns: Sequence[int], unembedding: ArrayLike, token_id: int
) -> list[int]:
    """Rank of a token, from 1, in each column read through the unembedding.

    Ties count against the token.

    Args:
        weight: `(d_out, d_in)`, before or after the edit.
        columns: Which columns.
        unembedding: `(vocab, d_out)`.
        token_id: The target's first token.
    """
    values = np.asarray(weight, np.float64)[:, list(columns)]
    scores = np.asarray(unembedding, np.float64) @ values
    return [int(rank) for rank in (scores >= scores[token_id]).sum(axis=0)]


def hit(ranks: Sequence[float], k: int) -> bool:
    """Whether the token is among the k highest of at least one column.

    Example:
        >>> hit([120, 60, 9, 300, 45], 10), hit([120, 60, 51], 50)
        (True, False)
    """
    return any(rank <= k for rank in ranks)


def hit_rate(
    records: Sequence[Measurement],
    k: int,
    name: str = "projection/edited",
    *,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Hit@k: share of edits whose target is among the k highest of one of the columns.

    Args:
        records: Of one run; `values` are ranks by column.
        k: How many of the highest count.
        name: `projection/edited` for the columns after the edit, `projection/original` before.
        bootstrap: How to find the interval.
    """
    found, skipped = measurements(records, name)
    items = [AnswerValue(one.case, float(hit(one.values, k))) for one in found]
    label = f"{name.partition('/')[2]}_hit_at_{k}"
    return over_cases(label, items, skipped=skipped, bootstrap=bootstrap)


METRICS: tuple[Metric, ...] = tuple(
    define(
        f"{which}_hit_at_{k}",
        "the target among the words of the columns that moved most",
        hit_rate,
        k,
        reads=f"projection/{which}",
        options={"name": f"projection/{which}"},
    )
    for which in ("original", "edited")
    for k in (1, 50)
)
