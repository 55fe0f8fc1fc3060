"""Locating, restoration, cost and projection: the worked examples."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from corrigenda.cases import Against
from corrigenda.metrics.cost import COSTS, cost, cost_per_edit, flops, inference_overhead
from corrigenda.metrics.locality import mean_divergence, unchanged
from corrigenda.metrics.locating import (
    adjusted_overlap,
    jaccard,
    locating_consistency,
    locating_relevance,
    overlap,
    relative_deviation,
    relative_similarity,
)
from corrigenda.metrics.projection import hit, hit_rate, moved_columns, token_ranks
from corrigenda.metrics.round_trip import (
    UNMOVED,
    graph_distance,
    mean_residual,
    parameter_residual,
)
from corrigenda.rows import Measurement, Row
from tests.support.rows import GREEDY


def place(case: str, layers: list[int], name: str = "locating/consistency") -> Measurement:
    return Measurement(case=case, name=name, values=[float(one) for one in layers])


def test_similarity_of_places() -> None:
    assert overlap([3, 4, 5], [4, 5, 6]) == pytest.approx(0.6667, abs=5e-5)
    assert jaccard([3, 4, 5], [4, 5, 6]) == 0.5
    assert adjusted_overlap(0.15625, 5, 32) == 0
    assert adjusted_overlap(1.0, 5, 32) == 1


def test_places_drawn_at_random_overlap_by_chance() -> None:
    """Five of 32 layers: on average 5 / 32 of one draw are in another."""
    draw = random.Random(0)
    found = [overlap(range(5), draw.sample(range(32), 5)) for _ in range(4000)]
    assert sum(found) / len(found) == pytest.approx(0.15625, abs=0.01)


@pytest.mark.parametrize(
    ("candidate", "everything", "value"),
    [(0.8, 0.5, 0.6), (7 / 9, 0.40, 0.6296), (0.3, 0.4, 0.0), (1.0, 1.0, 0.0)],
)
def test_relative_similarity(candidate: float, everything: float, value: float) -> None:
    assert relative_similarity(candidate, everything) == pytest.approx(value, abs=6e-5)


@pytest.mark.parametrize(("factual", "other", "value"), [(0.4, 0.1, 0.75), (0.4, 0.5, 0.0)])
def test_relative_deviation(factual: float, other: float, value: float) -> None:
    assert relative_deviation(factual, other) == pytest.approx(value)


def test_three_sentences_of_a_fact() -> None:
    """Sim_cand .7778; the only other fact lies in layers that share nothing."""
    layers = ([3, 4, 5], [4, 5, 6], [3, 4, 5])
    records = [place("A", one) for one in layers]
    records += [place("B", [20, 21, 22]), place("B", [20, 21, 22])]
    found = locating_consistency(records)
    assert found.by_case["A"] == pytest.approx(0.7778, abs=5e-5)
    assert found.value == pytest.approx((0.7778 + 1) / 2, abs=5e-5)


def test_places_that_all_agree_say_nothing() -> None:
    records = [place(case, [1, 2]) for case in "AABB"]
    assert locating_consistency(records).value == 0
    alone = locating_consistency([place("A", [1, 2]), place("A", [1, 2])])
    assert (alone.n, alone.skipped) == (0, {"no place of another case": 1})


def test_chains_and_their_facts() -> None:
    records = [
        place("A", [1, 2], "locating/relevance_chain"),
        place("A", [2, 3], "locating/relevance_single"),
        place("B", [7, 8], "locating/relevance_chain"),
        place("B", [7, 8], "locating/relevance_single"),
    ]
    found = locating_relevance(records)
    assert found.by_case == {"A": 0.5, "B": 1.0}
    assert found.value == 0.75


def test_residual_of_parameters() -> None:
    original, edited = {"w": [1.0, 0.0]}, {"w": [1.0, 2.0]}
    assert parameter_residual(original, edited, {"w": [1.0, 0.5]}) == 0.25
    assert parameter_residual(original, edited, original) == 0
    assert math.isnan(parameter_residual(original, original, edited))
    records = [
        Measurement(case="1", name="restoration/residual", values=[2.0, 0.5]),
        Measurement(case="2", name="restoration/residual", values=[0.0, 0.0]),
    ]
    found = mean_residual(records)
    assert (found.value, found.skipped) == (0.25, {UNMOVED: 1})


def test_graph_goes_back_to_where_it_was() -> None:
    first, second, third = ("a", "r", "b"), ("a", "s", "c"), ("a", "r", "d")
    start = [first, second]
    assert graph_distance(start, [first, third]) == 2
    assert graph_distance(start, start) == 0


def test_behaviour_of_a_restored_model() -> None:
    row = Row(
        case="1",
        role="restoration/edit",
        protocol=GREEDY,
        against=Against.UNEDITED,
        answer="Rome",
        answer_before="Rome",
        divergence=[0.25],
    )
    assert unchanged([row], "restoration", protocol=GREEDY).value == 1
    assert mean_divergence([row], "restoration", protocol=GREEDY).value == 0.25


def test_costs_are_means_over_units() -> None:
    records = [
        Measurement(case="a", name="cost/edit_seconds", values=[3.0, 1.0]),
        Measurement(case="b", name="cost/edit_seconds", values=[5.0, 3.0]),
    ]
    assert "edit_seconds" in COSTS
    assert cost(records, "edit_seconds").value == 4
    assert cost_per_edit(records, "edit_seconds").value == 2
    latency = [Measurement(case="p", name="cost/latency", values=[2.0, 3.0])]
    assert inference_overhead(latency).value == 1.5


def test_operations() -> None:
    assert flops(1e9, 20, steps=25) == 3.0e12
    assert flops(1e9, 20, backward=False) == 4e10
    assert flops(0, 0, solves=[100, 10]) == 1_001_000


@pytest.mark.parametrize(
    ("ranks", "ten", "fifty"),
    [((120, 60, 9, 300, 45), True, True), ((120, 60, 51, 300, 70), False, False)],
)
def test_hits(ranks: tuple[int, ...], ten: bool, fifty: bool) -> None:
    assert (hit(ranks, 10), hit(ranks, 50)) == (ten, fifty)
    record = Measurement(case="1", name="projection/edited", values=[float(one) for one in ranks])
    found = hit_rate([record], 50)
    assert (found.value, found.metric) == (float(fifty), "edited_hit_at_50")


def test_columns_that_moved_read_as_words() -> None:
    original = np.zeros((3, 6))
    edited = original.copy()
    edited[:, 4] = [0.0, 3.0, 1.0]
    edited[:, 1] = [1.0, 0.0, 0.0]
    assert moved_columns(original, edited, count=2) == [4, 1]
    unembedding = np.eye(3)
    assert token_ranks(edited, [4, 1], unembedding, 1) == [1, 3]
    assert token_ranks(edited, [4, 1], unembedding, 0) == [3, 1]
