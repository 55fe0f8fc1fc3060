"""Texts along a run: fluency in both ways, consistency and essence, of CounterFact's records."""

from __future__ import annotations

from pathlib import Path

import pytest

from corrigenda.cases import Protocol
from corrigenda.metrics.metric import RunRecords
from corrigenda.metrics.registry import evaluate
from tests.run.conftest import Do, make
from tests.support.all_benchmarks import SNIPPETS
from tests.support.records import COUNTERFACT, write


def test_texts_are_generated_sampled_compared_and_scored(do: Do, tmp_path: Path) -> None:
    pytest.importorskip("nltk", reason="fluency needs nltk (extra `metrics`)")
    pytest.importorskip("sklearn", reason="consistency needs scikit-learn (extra `metrics`)")
    write(tmp_path / "data" / "counterfact.json", [COUNTERFACT])
    write(tmp_path / "data" / "attribute_snippets.json", SNIPPETS)
    options = {"attributes": True, "texts": True}
    data = {"name": "counterfact", "path": str(tmp_path / "data"), "options": options}
    recorded = do(make(data=data, ask={"protocols": ["rank", "sampled"]}))
    texts = [row for row in recorded.rows if row.family == "fluency"]
    assert [row.protocol for row in texts] == [Protocol.GREEDY, Protocol.SAMPLED] * 2
    assert not any(row.skipped for row in recorded.rows)
    sampled = [row for row in texts if row.protocol == Protocol.SAMPLED]
    assert all(row.answer and row.answer_before for row in sampled)
    found = {one.metric: one for one in evaluate(RunRecords(recorded.rows))}
    for name in ("fluency@greedy", "fluency@sampled", "consistency@greedy", "attribute_score@rank"):
        assert found[name].n == 1
    (legacy,) = evaluate(RunRecords(recorded.rows), ["fluency_legacy@sampled"])
    assert legacy.value > 0
    assert legacy.value != found["fluency@sampled"].value
    # Texts are asked in their own way, whatever the protocols of a run.
    assert found["essence@teacher_forced"].n == 1
    asked = {(row.family, row.protocol) for row in recorded.rows}
    assert not asked & {("consistency", Protocol.RANK), ("essence", Protocol.RANK)}
