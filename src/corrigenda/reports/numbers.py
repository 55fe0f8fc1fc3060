"""Formats estimates for tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from corrigenda.metrics.estimate import Bootstrap, Estimate, count_cases
from corrigenda.metrics.metric import Better, Metric

NOTHING = "-"


def describe_signs(bootstrap: Bootstrap) -> str:
    """Explain the signs and brackets of a table.

    Example:
        >>> describe_signs(Bootstrap())
        '^ higher is better, v lower, = as before. In brackets: 95 % interval over cases.'
    """
    return f"^ higher is better, v lower, = as before. In brackets: {describe_interval(bootstrap)}."


def describe_interval(bootstrap: Bootstrap) -> str:
    """Name the kind of interval.

    Example:
        >>> describe_interval(Bootstrap(level=0.99))
        '99 % interval over cases'
    """
    found = f"{100 * bootstrap.level:.6g} % interval over cases"
    if not bootstrap.hierarchical:
        return found
    return f"{found} and their answers, none where a case is no mean of answers"


def format_number(value: float) -> str:
    """Format a number with about three digits.

    Example:
        >>> [format_number(one) for one in (97.333, 100.0, 0.01234, 12345.6)]
        ['97.3', '100', '0.0123', '12346']
    """
    if math.isnan(value):
        return NOTHING
    size = abs(value)
    if size >= 1000 or value == round(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.3g}"


def format_interval(estimate: Estimate | None, scale: float) -> str:
    """Format the interval; empty if there is none."""
    if estimate is None or math.isnan(estimate.low):
        return ""
    return f"[{format_number(estimate.low * scale)}, {format_number(estimate.high * scale)}]"


def format_value(estimate: Estimate | None, scale: float) -> str:
    """Format the value alone; a dash if there is none."""
    return NOTHING if estimate is None else format_number(estimate.value * scale)


def format_cell(estimate: Estimate | None, scale: float) -> str:
    """Format value and interval."""
    return f"{format_value(estimate, scale)} {format_interval(estimate, scale)}".rstrip()


def format_num_cases(estimates: Sequence[Estimate | None]) -> str:
    """Format the number of cases; the least and the most where they differ, marked where few."""
    return count_cases(estimates)


def find_best(
    metric: Metric, estimates: Sequence[Estimate | None], before: Estimate | None = None
) -> frozenset[int]:
    """Return the places of the best values: those formatted like the best; none where all are 0.

    Args:
        metric: Says which way is better.
        estimates: What is compared; fewer than two values have no best.
        before: Value of the unedited model, for metrics that are best as before.
    """
    known = {
        place: one.value
        for place, one in enumerate(estimates)
        if one is not None and not math.isnan(one.value)
    }
    reference = before.value if before is not None else math.nan
    if metric.reference is not None:
        reference = metric.reference
    if len(known) < 2 or not any(known.values()):
        return frozenset()
    if metric.better is Better.AS_BEFORE:
        if math.isnan(reference):
            return frozenset()
        top = min(known.values(), key=lambda one: abs(one - reference))
    else:
        top = max(known.values()) if metric.better is Better.HIGHER else min(known.values())
    wanted = format_number(top * metric.scale)
    return frozenset(
        place for place, one in known.items() if format_number(one * metric.scale) == wanted
    )
