"""Round trips: what editing back leaves of an edit, in weights, answers and a graph of facts.

Reverting a patch restores every bit, and the tests of this library show it. Editing back, with the
original answer as the target of a second edit, does not: these metrics say by how much. Behaviour
is that of rows of the restored model, compared with the unedited one: `unchanged` and
`mean_divergence` of family `restoration`. A graph of facts, edited and edited back, is the measure
of both: nothing is left of the edit there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from corrigenda.cases import Protocol
from corrigenda.metrics.estimate import BOOTSTRAP, AnswerValue, Bootstrap, Estimate, over_cases
from corrigenda.metrics.locality import mean_divergence, unchanged
from corrigenda.metrics.metric import LOWER, POSITIVE, Metric, define
from corrigenda.metrics.selection import measurements
from corrigenda.metrics.success import metric_name
from corrigenda.rows import Measurement

UNMOVED = "the edit moved nothing"
RESIDUAL, GRAPH = "restoration/residual", "restoration/graph"
"""Names of measurements: distances after the edit and after the edit back, of weights and of
triples."""
_NAMES = {RESIDUAL: "parameter_residual", GRAPH: "graph_residual"}
Triple = tuple[str, str, str]


def graph_distance(first: Iterable[Triple], second: Iterable[Triple]) -> int:
    """Number of triples that are in one of two graphs only.

    Example:
        >>> old, new = ("a", "r", "b"), ("a", "r", "c")
        >>> graph_distance([old], [new]), graph_distance([old], [old])
        (2, 0)
    """
    return len(set(first) ^ set(second))


def parameter_residual(
    original: Mapping[str, ArrayLike],
    edited: Mapping[str, ArrayLike],
    restored: Mapping[str, ArrayLike],
) -> float:
    """Return the distance left, ||restored - original|| / ||edited - original||.

    0 is a perfect restoration, 1 none; above 1 the second edit moved the weights further away. NaN
    where the edit moved nothing. Norms in float64.

    Args:
        original: Tensors by name; arrays, or whatever NumPy can read.
        edited: The same after the edit.
        restored: The same after the edit back.

    Example:
        >>> parameter_residual({"w": [1.0, 0.0]}, {"w": [1.0, 2.0]}, {"w": [1.0, 0.5]})
        0.25
    """
    there, back = distance(original, edited), distance(original, restored)
    return back / there if there else float("nan")


def distance(first: Mapping[str, ArrayLike], second: Mapping[str, ArrayLike]) -> float:
    """Euclidean distance of all tensors together."""
    squares = [
        float(np.sum((np.asarray(second[name], np.float64) - np.asarray(value, np.float64)) ** 2))
        for name, value in first.items()
    ]
    return float(np.sqrt(np.sum(squares)))


def mean_residual(
    records: Sequence[Measurement],
    name: str = RESIDUAL,
    *,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Mean share of an edit that editing back leaves; lower is better.

    Args:
        records: Of one run; `values` are the distances from the original after the edit, and after
            the edit back.
        name: `RESIDUAL` or `GRAPH`.
        bootstrap: How to find the interval.
    """
    found, skipped = measurements(records, name)
    items = [AnswerValue(one.case, one.values[1] / one.values[0]) for one in found if one.values[0]]
    if len(items) < len(found):
        skipped[UNMOVED] += len(found) - len(items)
    return over_cases(_NAMES[name], items, skipped=skipped, bootstrap=bootstrap, share=False)


METRICS: tuple[Metric, ...] = (
    *(
        define(
            metric_name("restoration", Protocol.GREEDY, measure),
            "answers that are as before, edited back",
            unchanged,
            "restoration",
            reads="restoration",
            options={"protocol": Protocol.GREEDY, "measure": measure},
        )
        for measure in (None, "sentence", "answer", "tokens")
    ),
    define(
        "restoration_divergence@greedy",
        "KL divergence from the unedited model, edited back",
        mean_divergence,
        "restoration",
        reads="restoration",
        better=LOWER,
        span=POSITIVE,
        scale=1.0,
        options={"protocol": Protocol.GREEDY},
    ),
)
"""Of answers."""

RESIDUALS: tuple[Metric, ...] = (
    define(
        "parameter_residual",
        "share of an edit that editing back leaves",
        mean_residual,
        reads=RESIDUAL,
        better=LOWER,
        span=POSITIVE,
        scale=1.0,
    ),
    define(
        "graph_residual",
        "the same of a graph of facts",
        mean_residual,
        GRAPH,
        reads=GRAPH,
        better=LOWER,
        span=POSITIVE,
        scale=1.0,
    ),
)
"""Of distances; tables show them with measurements."""
