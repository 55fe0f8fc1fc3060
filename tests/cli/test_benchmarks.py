"""`benchmarks`: the list, and one benchmark read."""

from __future__ import annotations

from pathlib import Path

from corrigenda.benchmarks.benchmark import BENCHMARKS
from tests.support.records import ZSRE, changed, write
from tests.support.tiny_on_disk import Run


def test_benchmarks_lists_every_card(run: Run) -> None:
    rows = {row["name"]: row for row in run("benchmarks", "--json").json["benchmarks"]}
    assert set(rows) == set(BENCHMARKS.names())
    assert rows["mquake"]["parts"] == ["cf-3k-v2", "cf-3k", "cf", "t", "hard"]
    assert rows["knowedit-convsent"]["download"] == []
    shown = run("benchmarks").out
    assert all(name in shown for name in rows)


def test_benchmark_prints_counts_and_a_case(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "zsre.json", [ZSRE, changed(ZSRE, alt=""), changed(ZSRE, rephrase="")])
    data = run("benchmarks", "zsre", path, "--json").json
    assert data["counts"]["records"] == 3
    assert data["counts"]["cases"] == 2
    assert data["dropped"] == {"the prompt or the target is empty": 1}
    assert data["skipped"] == {"generalization: no prompt": 1}
    assert data["case"]["id"] == "0"
    assert data["case"]["facts"][0]["target"] == "1931"
    shown = run("benchmarks", "zsre", path, "--set", "direction=truth", "--case", "2").out
    assert "edit: When was Vero tower built? -> 1920" in shown
    assert "reliability@teacher_forced" in shown
    assert "another record has the same prompt" in shown


def test_benchmark_may_be_generated(run: Run) -> None:
    ran = run("benchmarks", "pocketedit", "--set", "part=erasure", "--limit", 2, "--json")
    assert ran.json["counts"]["cases"] == 2
    assert ran.json["options"]["part"] == "erasure"


def test_benchmark_errors_are_coded(run: Run, tmp_path: Path) -> None:
    ran = run("benchmarks", "--limit", 3)
    assert (ran.code, ran.err[:5]) == (2, "CG502")
    assert "corrigenda benchmarks NAME" in ran.err
    ran = run("benchmarks", "zrse")
    assert (ran.code, ran.err[:5]) == (2, "CG508")
    ran = run("benchmarks", "zsre", tmp_path)
    assert (ran.code, ran.err[:5]) == (2, "CG604")
    ran = run("benchmarks", "pocketedit", "--limit", 1, "--case", "none")
    assert (ran.code, ran.err[:5]) == (2, "CG502")
    ran = run("benchmarks", "pocketedit", "--set", "name=x")
    assert (ran.code, ran.err[:5]) == (2, "CG502")
