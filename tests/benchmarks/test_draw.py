"""A limit draws cases by a seed, and every kind of case has its share."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from corrigenda import benchmarks
from corrigenda.benchmarks.benchmark import BENCHMARKS
from corrigenda.benchmarks.draw import draw_cases
from corrigenda.cases import Case
from corrigenda.run import plan
from corrigenda.run.spec import RunSpec
from tests.run.conftest import make

SIZES = {"a": 60, "b": 30, "c": 10}
GROUPED = [
    Case(id=f"{kind}{n}", facts=(), probes=(), meta={"relation": kind})
    for kind, size in SIZES.items()
    for n in range(size)
]


def names(cases: Sequence[Case]) -> tuple[str, ...]:
    return tuple(case.id for case in cases)


def kinds(cases: list[Case]) -> Counter[object]:
    return Counter(case.meta["relation"] for case in cases)


@pytest.mark.parametrize("seed", range(5))
def test_every_kind_has_its_share(seed: int) -> None:
    drawn = draw_cases(GROUPED, 20, ["relation"], seed)
    assert len(drawn) == 20
    for kind, count in kinds(drawn).items():
        assert abs(count - SIZES[str(kind)] / 5) <= 1
    assert [GROUPED.index(case) for case in drawn] == sorted(map(GROUPED.index, drawn))


def test_the_seed_decides() -> None:
    first, again, other = (draw_cases(GROUPED, 20, ["relation"], seed) for seed in (3, 3, 4))
    assert first == again != other
    assert set(map(id, first)) < set(map(id, draw_cases(GROUPED, 40, ["relation"], 3)))
    assert draw_cases(GROUPED, 200, ["relation"], 3) == GROUPED
    plain = draw_cases(GROUPED, 20, ["no such key"], 3)
    assert len(plain) == 20


def test_every_case_is_equally_likely() -> None:
    """Also the only case of its kind, which a plain rule of thumb would always or never take."""
    cases = [*GROUPED, Case(id="d", facts=(), probes=(), meta={"relation": "d"})]
    taken = Counter(
        case.id for seed in range(400) for case in draw_cases(cases, 25, ["relation"], seed)
    )
    assert taken.total() == 400 * 25
    assert 60 < taken["d"] < 140
    assert all(50 < taken[case.id] < 160 for case in cases)


def grouped_file(folder: Path) -> Path:
    """A flat CounterFact file, grouped by relation as some public files are."""
    path = folder / "klob.json"
    subjects = ("France", "Spain", "Italy", "Norway", "Japan")
    path.write_text(
        json.dumps(
            [
                {"subject": one, "src": f"What is {what} of {one}?", "pred": "Paris", **REST}
                for what in ("the capital", "the language")
                for one in subjects
            ]
        )
    )
    return path


REST = {
    "rephrase": "Which city is it?",
    "alt": "Rome",
    "answers": ["Paris"],
    "loc": "nq question: who wrote it",
    "loc_ans": "Dante",
    "cond": "Paris >> Rome || What is it?",
}


def test_a_benchmark_draws_by_its_seed(tmp_path: Path) -> None:
    path = grouped_file(tmp_path)
    whole = benchmarks.load("zsre", path)
    zsre = BENCHMARKS.get("zsre")()
    drawn = [zsre.load(path, limit=3, seed=seed) for seed in range(6)]
    for one in drawn:
        assert [case for case in whole if case in one.cases] == [*one.cases]
        assert one.counts["cases"] == 3
        assert one.counts["drawn from"] == one.counts["records"] == 10
    assert len({names(one.cases) for one in drawn}) > 1
    assert zsre.load(path, limit=3, seed=2).cases == drawn[2].cases
    assert zsre.load(path, limit=10).cases == whole.cases
    assert "drawn from" not in whole.counts


def test_the_seed_of_a_draw_is_part_of_the_run(tmp_path: Path) -> None:
    def data(**more: object) -> RunSpec:
        return make(data={"name": "zsre", "path": str(grouped_file(tmp_path)), **more})

    drawn = {names(plan.load_data(data(limit=3, seed=seed)).cases) for seed in range(6)}
    assert len(drawn) > 1
    assert data(limit=3, seed=1).digest() != data(limit=3, seed=2).digest()
    assert data(seed=1).digest() == data(seed=2).digest()


def test_pocketedit_is_a_draw_already() -> None:
    """Its figures are of the first cases of a seed, of which all others are drawn."""
    pocket = BENCHMARKS.get("pocketedit")
    small = pocket(world="small", size=20)
    assert small.load(limit=5, seed=3).cases == pocket(world="small", size=5).load().cases
