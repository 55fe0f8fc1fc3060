"""Damage as paired differences with intervals, and the verdict that follows from them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from corrigenda.guarding.limits import Limit, Measure
from corrigenda.metrics.estimate import (
    AnswerValue,
    Bootstrap,
    Estimate,
    Numbers,
    first_mean,
    over_cases,
    ratio_of_sums,
    statistic,
)

_SHARES = (Measure.SAME_RELATION, Measure.OTHER_RELATIONS, Measure.SAME_SUBJECT)
_FEWEST_RESAMPLES = 1000


class GuardVerdict(StrEnum):
    """Verdict on an edit."""

    FREE = "free"
    """No damage beyond what is free, within the interval."""
    COSTLY = "costly"
    """Damage that is certain, and within the limits."""
    REFUSED = "refused"
    """Damage beyond the limits."""


class PairedValue(NamedTuple):
    """One prompt or text, asked without and with the edit.

    Attributes:
        measure: What it measures.
        case: What it is about: prompts about one subject are one case, resampled together.
        before: Number without the edit, as the measure says.
        after: Number with it.
        weight: Tokens of a text; 1 for a prompt.
    """

    measure: Measure
    case: str
    before: float
    after: float
    weight: float = 1.0


class Damage(NamedTuple):
    """Damage by one measure.

    Attributes:
        measure: The measure.
        value: The damage; NaN where nothing could be measured.
        low: Lower end of its interval.
        high: Upper end.
        items: Prompts, texts or weights.
        limit: The limits that apply.
    """

    measure: Measure
    value: float
    low: float
    high: float
    items: int
    limit: Limit

    @property
    def verdict(self) -> GuardVerdict:
        """Return the verdict by this measure alone.

        It is certain that there is damage where the whole interval is above what is free. With a
        single case there is no interval, and nothing is certain.
        """
        certain = self.low > self.limit.free
        if certain and self.value > self.limit.refused:
            return GuardVerdict.REFUSED
        return GuardVerdict.COSTLY if certain else GuardVerdict.FREE

    @property
    def excess(self) -> float:
        """Return the damage in multiples of what is free; 0 where nothing was measured."""
        if math.isnan(self.value):
            return 0.0
        return max(self.value, 0.0) / max(self.limit.free, 1e-12)

    def describe(self) -> str:
        """Return the number with its interval and the limit that it is compared with."""
        if math.isnan(self.value):
            return f"{self.measure}: not measured"
        ends = "" if math.isnan(self.low) else f" ({self.low:.3g} to {self.high:.3g})"
        bound = (
            f"refused above {self.limit.refused:g}"
            if self.verdict is GuardVerdict.REFUSED
            else f"free up to {self.limit.free:g}"
        )
        return f"{self.measure} {self.value:.3g}{ends}, {bound}"

    def to_json(self) -> dict[str, object]:
        """Return plain values; null where there is no number."""
        return {
            "measure": str(self.measure),
            "value": _plain(self.value),
            "low": _plain(self.low),
            "high": _plain(self.high),
            "items": self.items,
            "free_up_to": self.limit.free,
            "refused_above": _plain(self.limit.refused),
            "verdict": str(self.verdict),
        }


def estimate_damage(
    values: Iterable[PairedValue],
    limits: Mapping[Measure, Limit],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    norm: float | None = None,
) -> tuple[Damage, ...]:
    """Return the damage by every measure, with intervals that hold for all of them together.

    Each measure is tested on one side, so that with k of them an interval of the level
    1 - 2 (1 - confidence) / k is taken (Bonferroni): where no damage is above what is free, an edit
    is called costly with probability 1 - confidence at most. Shares have the interval of
    `metrics.intervals.share_interval`, others percentiles over resampled cases.

    Args:
        values: Prompts and texts.
        limits: The limits of every measure.
        confidence: Of all intervals together.
        seed: Of the resampling.
        norm: Largest growth of a norm, where weights change; it has no interval.
    """
    pools: dict[Measure, list[PairedValue]] = defaultdict(list)
    for one in values:
        pools[one.measure].append(one)
    tail = (1 - confidence) / max(1, len(pools))
    bootstrap = Bootstrap(
        seed=seed,
        # Enough for the tail to be more than a few resamples.
        resamples=max(_FEWEST_RESAMPLES, math.ceil(20 / tail)),
        level=1 - 2 * tail,
    )
    found: list[Damage] = []
    for measure in Measure:
        if measure is Measure.NORM:
            size = math.nan if norm is None else norm
            found.append(Damage(measure, size, size, size, int(norm is not None), limits[measure]))
        elif own := pools.get(measure):
            one = _estimate(measure, own, bootstrap)
            found.append(Damage(measure, one.value, one.low, one.high, len(own), limits[measure]))
        else:
            found.append(Damage(measure, math.nan, math.nan, math.nan, 0, limits[measure]))
    return tuple(found)


def decide(damages: Sequence[Damage]) -> tuple[GuardVerdict, Damage | None]:
    """Return the verdict, and the damage that decided it: the worst, in multiples of its limit.

    Of a free edit, it is the one that is closest to its limit; None where nothing was measured.
    """
    order = (GuardVerdict.REFUSED, GuardVerdict.COSTLY, GuardVerdict.FREE)
    known = [one for one in damages if not math.isnan(one.value)]
    for verdict in order:
        own = [one for one in known if one.verdict is verdict]
        if own:
            return verdict, max(own, key=lambda one: one.excess)
    return GuardVerdict.FREE, None


def _estimate(measure: Measure, values: Sequence[PairedValue], bootstrap: Bootstrap) -> Estimate:
    if measure is Measure.PERPLEXITY:
        sums: dict[str, list[float]] = {}
        for one in values:
            own = sums.setdefault(one.case, [0.0, 0.0])
            own[0] += one.after - one.before
            own[1] += one.weight
        return statistic(measure, sums, _grow, items=len(values), bootstrap=bootstrap)
    if measure in _SHARES:
        lost = [AnswerValue(one.case, one.before - one.after) for one in values]
        return over_cases(measure, lost, bootstrap=bootstrap)
    sign = -1 if measure is Measure.TASKS else 1
    cases = {
        case: (mean,)
        for case, mean in _average(
            (one.case, sign * (one.after - one.before)) for one in values
        ).items()
    }
    return statistic(measure, cases, first_mean, items=len(values), bootstrap=bootstrap)


def _grow(values: Numbers) -> Numbers:
    """Return exp(sum of differences of log-likelihoods / tokens) - 1."""
    with np.errstate(over="ignore"):
        return np.expm1(ratio_of_sums(values))


def _average(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    found: dict[str, list[float]] = defaultdict(list)
    for case, value in pairs:
        found[case].append(value)
    return {case: math.fsum(own) / len(own) for case, own in found.items()}


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
