"""Damage of paired values, the verdict, and how rarely chance alone decides it."""

from __future__ import annotations

import math
import random

import pytest

from corrigenda.errors import BadConfig
from corrigenda.guarding.damage import Damage, GuardVerdict, PairedValue, decide, estimate_damage
from corrigenda.guarding.limits import LIMITS, Limit, Measure, parse_limits, set_limits

REPEATS = 200
SAMPLE = 48


def answers(measure: Measure, kept: list[bool]) -> list[PairedValue]:
    return [
        PairedValue(measure, f"case {place}", 1.0, float(one)) for place, one in enumerate(kept)
    ]


def verdict(values: list[PairedValue], **options: float) -> GuardVerdict:
    return decide(estimate_damage(values, LIMITS, **options))[0]


def test_nothing_lost_is_free() -> None:
    damages = estimate_damage(answers(Measure.OTHER_RELATIONS, [True] * SAMPLE), LIMITS)
    found, decided_by = decide(damages)
    assert found is GuardVerdict.FREE
    assert decided_by is not None
    assert (decided_by.measure, decided_by.value) == (Measure.OTHER_RELATIONS, 0.0)


@pytest.mark.parametrize(
    ("lost", "wanted"),
    [(1, GuardVerdict.FREE), (8, GuardVerdict.COSTLY), (24, GuardVerdict.REFUSED)],
)
def test_the_share_of_lost_answers_decides(lost: int, wanted: GuardVerdict) -> None:
    kept = [place >= lost for place in range(SAMPLE)]
    damages = estimate_damage(answers(Measure.OTHER_RELATIONS, kept), LIMITS)
    found, decided_by = decide(damages)
    assert found is wanted
    assert decided_by is not None
    assert decided_by.value == pytest.approx(lost / SAMPLE)
    assert "other relations" in decided_by.describe()


def test_other_facts_of_the_subject_never_refuse() -> None:
    assert verdict(answers(Measure.SAME_SUBJECT, [False] * SAMPLE)) is GuardVerdict.COSTLY


def test_a_single_case_decides_nothing() -> None:
    one = answers(Measure.OTHER_RELATIONS, [False])
    assert math.isnan(estimate_damage(one, LIMITS)[1].low)
    assert verdict(one) is GuardVerdict.FREE


def test_perplexity_is_of_all_tokens() -> None:
    """Two texts, of 10 and 30 tokens, that lose 0.1 and 0.3 nats a token."""
    texts = [
        PairedValue(Measure.PERPLEXITY, "a", 20.0, 21.0, 10.0),
        PairedValue(Measure.PERPLEXITY, "b", 60.0, 69.0, 30.0),
    ]
    found = next(one for one in estimate_damage(texts, LIMITS) if one.measure is Measure.PERPLEXITY)
    assert found.value == pytest.approx(math.expm1(10 / 40))


def test_a_better_model_has_no_damage() -> None:
    texts = [PairedValue(Measure.PERPLEXITY, f"{n}", 20.0, 15.0 - n / 100, 10.0) for n in range(9)]
    assert verdict(texts) is GuardVerdict.FREE


def test_growth_of_a_norm_has_no_interval() -> None:
    assert verdict([], norm=0.1) is GuardVerdict.FREE
    assert verdict([], norm=1.5) is GuardVerdict.COSTLY
    assert verdict([], norm=9.0) is GuardVerdict.REFUSED


def test_the_worst_measure_decides() -> None:
    free = answers(Measure.OTHER_RELATIONS, [True] * SAMPLE)
    _, decided_by = decide(estimate_damage(free, LIMITS, norm=1.5))
    assert decided_by is not None
    assert decided_by.measure is Measure.NORM


def test_without_anything_measured_nothing_decides() -> None:
    assert decide(estimate_damage([], LIMITS)) == (GuardVerdict.FREE, None)


def at_the_limit(measure: Measure, draw: random.Random) -> list[PairedValue]:
    """A draw from a population whose damage is exactly what is free."""
    free = LIMITS[measure].free
    if measure is Measure.DIVERGENCE:
        # Most divergences are near zero and a few are large, as they are after edits.
        return [
            PairedValue(measure, f"{n}", 0.0, free * draw.lognormvariate(-0.5, 1.0))
            for n in range(SAMPLE)
        ]
    return answers(measure, [draw.random() >= free for _ in range(SAMPLE)])


def test_damage_at_the_limits_is_rarely_called_costly() -> None:
    """At 95 % at most one verdict in twenty, over all measures; 17 of 200 are 5 % and 2.3 sigma."""
    alarms = 0
    for seed in range(REPEATS):
        draw = random.Random(seed)
        values = [value for measure in (*Measure,)[:4] for value in at_the_limit(measure, draw)]
        alarms += verdict(values, seed=seed) is not GuardVerdict.FREE
    assert alarms <= 17


def test_limits_are_options() -> None:
    table = set_limits({"other relations": (0.3, 0.4)})
    assert table[Measure.OTHER_RELATIONS] == Limit(0.3, 0.4, "given")
    assert table[Measure.NORM] == LIMITS[Measure.NORM]
    kept = [place >= 8 for place in range(SAMPLE)]
    damages = estimate_damage(answers(Measure.OTHER_RELATIONS, kept), table)
    assert decide(damages)[0] is GuardVerdict.FREE


def test_every_limit_has_a_reason() -> None:
    assert set(LIMITS) == set(Measure)
    assert all(one.reason and 0 < one.free < one.refused for one in LIMITS.values())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"other relation": (0.1, 0.2)}, 'Did you mean "other relations"'),
        ({"perplexity": (0.3, 0.2)}, "limits of perplexity are 0.3, 0.2"),
        ({"perplexity": (0.3,)}, "Give two numbers"),
    ],
)
def test_limits_that_are_none_are_refused(given: dict[str, tuple[float]], message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        set_limits(given)


def test_limits_are_read_from_texts() -> None:
    assert parse_limits(["perplexity=0.1,0.2", "norm growth = 1,inf"]) == {
        "perplexity": (0.1, 0.2),
        "norm growth": (1.0, math.inf),
    }
    with pytest.raises(BadConfig, match="MEASURE=FREE,REFUSED"):
        parse_limits(["perplexity=much"])


def test_json_has_no_numbers_that_are_none() -> None:
    limit = LIMITS[Measure.SAME_SUBJECT]
    plain = Damage(Measure.SAME_SUBJECT, math.nan, math.nan, math.nan, 0, limit).to_json()
    assert plain["value"] is plain["low"] is plain["refused_above"] is None
