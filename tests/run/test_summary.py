"""Default tables: the metrics that a benchmark's paper reports come first, and none twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from corrigenda.benchmarks.benchmark import BENCHMARKS
from corrigenda.metrics.registry import metric
from corrigenda.run import summary
from corrigenda.run.spec import RunSpec
from tests.support.recorded import record_run
from tests.support.records import (
    COUNTERFACT,
    MQUAKE,
    RECENT,
    RIPPLE,
    SANITATION,
    changed,
    write,
)


def list_metrics(name: str, source: Path, *, runs: int = 1) -> list[str]:
    lines = summary.make_lines([record_run(name, source)] * runs)
    return [line.metric.name for line in lines if any(line.estimates)]


@pytest.mark.parametrize("name", BENCHMARKS.names())
def test_headlines_are_metrics(name: str) -> None:
    headline = BENCHMARKS.get(name).headline
    assert headline
    assert len(set(headline)) == len(headline)
    for one in headline:
        assert not metric(one).legacy


def test_multi_hop_accuracy_of_mquake_comes_first(tmp_path: Path) -> None:
    source = write(tmp_path / "m.json", [MQUAKE, changed(MQUAKE, case_id=4)])
    found = list_metrics("mquake", source)
    assert found[:3] == ["edit_wise@greedy", "instance_wise@greedy", "multi_hop@greedy:any"]


def test_the_six_criteria_of_rippleedits_come_first(tmp_path: Path) -> None:
    found = list_metrics("rippleedits", write(tmp_path / "r.json", [RIPPLE]))
    criteria = [
        *("logical_generalization", "compositionality_1", "subject_aliasing"),
        *("preservation", "relation_specificity"),
    ]
    assert found[:5] == [f"{one}@greedy:contains" for one in criteria]
    headline = BENCHMARKS.get("rippleedits").headline
    assert len(headline) == 6
    assert "compositionality_2@greedy:contains" in headline


def test_token_agreement_of_sanitation_is_shown(tmp_path: Path) -> None:
    for name, records in SANITATION.items():
        write(tmp_path / name, records)
    found = list_metrics("sanitation", tmp_path)
    assert found[:2] == ["refusal@greedy", "leak@greedy"]
    assert "locality@greedy:tokens" in found[:5]


def test_efficacy_is_listed_once(tmp_path: Path) -> None:
    source = write(tmp_path / "c.json", [COUNTERFACT, changed(COUNTERFACT, case_id=8)])
    found = list_metrics("counterfact", source, runs=2)
    assert found[:2] == ["score@rank", "efficacy_score@rank"]
    assert "paraphrase_score@rank" in found
    assert "reliability@rank" not in found
    assert "generalization@rank" not in found
    assert len(found) == len(set(found))


def test_several_benchmarks_give_their_headlines_one_after_the_other(tmp_path: Path) -> None:
    first = record_run("counterfact", write(tmp_path / "c.json", [COUNTERFACT]))
    second = record_run("knowedit-recent", write(tmp_path / "r.json", [RECENT]))
    both = RunSpec(
        editor={"name": "rome"},  # type: ignore[arg-type]
        benchmark=[{"name": "counterfact"}, {"name": "knowedit-recent"}],  # type: ignore[arg-type]
        regime={"kind": "mix", "length": 2},  # type: ignore[arg-type]
    )
    run = first._replace(rows=[*first.rows, *second.rows], spec=both)
    found = [line.metric.name for line in summary.make_lines([run])]
    assert found.index("paraphrase_score@rank") < found.index("portability@teacher_forced")
    assert found.index("portability@teacher_forced") < found.index("locality@teacher_forced")


def test_metrics_asked_for_are_listed_as_asked(tmp_path: Path) -> None:
    run = record_run("counterfact", write(tmp_path / "c.json", [COUNTERFACT]))
    found = summary.make_lines([run], ["reliability@rank", "efficacy_score@rank"])
    assert [line.metric.name for line in found] == ["reliability@rank", "efficacy_score@rank"]
