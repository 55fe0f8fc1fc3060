"""Cost of an edit: time, memory, steps and tokens, measured for each unit of work.

Times are taken with the device idle before and after, without loading the model. One-off statistics
are measured by themselves (`cost/fit_seconds`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from corrigenda.metrics.estimate import (
    BOOTSTRAP,
    AnswerValue,
    Bootstrap,
    Estimate,
    over_cases,
    ratio_of_sums,
    statistic,
)
from corrigenda.metrics.metric import LOWER, POSITIVE, Metric, define
from corrigenda.metrics.selection import measurements
from corrigenda.rows import Measurement

COSTS: Mapping[str, str] = {
    "fit_seconds": "seconds to fit what the method needs, once for each model",
    "edit_seconds": "seconds for each unit of work, a case or a batch",
    "ask_seconds": "seconds to answer the probes of a unit",
    "peak_bytes": "peak memory of the device",
    "peak_bytes_above_model": "peak memory of the device, less the loaded model",
    "stored_bytes": "bytes of the patch",
    "steps": "optimiser steps",
    "forward_passes": "forward passes of the model",
    "forward_tokens": "tokens in forward passes",
    "backward_tokens": "tokens in backward passes",
    "prompt_tokens": "tokens added to each prompt",
}
"""Measurements `cost/<name>` that are means over units of work; lower is better."""


PER_EDIT: Mapping[str, str] = {
    "edit_seconds": "seconds for each fact",
    "stored_bytes": "bytes of the patch for each fact",
}
"""Costs that are given for each fact too."""


def cost(
    records: Sequence[Measurement], what: str, *, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """Mean cost of a unit of work.

    Args:
        records: Of one run; `values` holds the cost of the unit.
        what: A key of `COSTS`.
        bootstrap: How to find the interval.
    """
    found, skipped = measurements(records, f"cost/{what}")
    items = [AnswerValue(one.case, one.values[0]) for one in found]
    return over_cases(f"cost/{what}", items, skipped=skipped, bootstrap=bootstrap, share=False)


def cost_per_edit(
    records: Sequence[Measurement], what: str, *, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """Total cost over the total number of facts; `values` holds cost and number of facts."""
    found, skipped = measurements(records, f"cost/{what}")
    cases: dict[str, tuple[float, float]] = {}
    for one in found:
        if len(one.values) > 1:
            cases[one.case] = (one.values[0], one.values[1])
        else:
            skipped["the number of facts is unknown"] += 1
    return statistic(
        f"cost_per_edit/{what}",
        cases,
        ratio_of_sums,
        items=len(cases),
        skipped=skipped,
        bootstrap=bootstrap,
        by_case={case: total / count for case, (total, count) in cases.items()},
    )


def inference_overhead(
    records: Sequence[Measurement],
    name: str = "cost/latency",
    *,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Latency with the edit over latency without it; 1 is best.

    `values` of a measurement are the seconds without and with the edit, for the same prompt.
    """
    found, skipped = measurements(records, name)
    return statistic(
        "inference_overhead",
        {one.case: (one.values[1], one.values[0]) for one in found},
        ratio_of_sums,
        items=len(found),
        skipped=skipped,
        bootstrap=bootstrap,
        by_case={one.case: one.values[1] / one.values[0] for one in found},
    )


def flops(
    num_parameters: float,
    tokens: float,
    *,
    steps: int = 1,
    backward: bool = True,
    solves: Sequence[int] = (),
) -> float:
    """Estimate the floating-point operations of an edit, by a rule of this library.

    Forward 2 N, backward 4 N for each token, and d^3 for each closed-form solve of d unknowns.

    Args:
        num_parameters: N, parameters the pass touches.
        tokens: Tokens of one pass.
        steps: Passes.
        backward: Whether gradients are taken too.
        solves: Sizes d of systems that are solved.

    Example:
        >>> flops(1e9, 20, steps=25)
        3000000000000.0
    """
    passes = (6.0 if backward else 2.0) * num_parameters * tokens * steps
    return passes + sum(float(size) ** 3 for size in solves)


METRICS: tuple[Metric, ...] = (
    *(
        define(
            f"cost/{name}",
            title,
            cost,
            name,
            reads=f"cost/{name}",
            better=LOWER,
            span=POSITIVE,
            scale=1.0,
        )
        for name, title in COSTS.items()
    ),
    *(
        define(
            f"cost_per_edit/{name}",
            title,
            cost_per_edit,
            name,
            reads=f"cost/{name}",
            better=LOWER,
            span=POSITIVE,
            scale=1.0,
        )
        for name, title in PER_EDIT.items()
    ),
    define(
        "inference_overhead",
        "latency over that without the edit",
        inference_overhead,
        reads="cost/latency",
        better=LOWER,
        span=POSITIVE,
        scale=1.0,
    ),
)
