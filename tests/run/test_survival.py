"""Facts asked again after edited weights were quantised or fine-tuned, in a run."""

from __future__ import annotations

import pytest

import corrigenda as cg
from corrigenda.cases import Case, Probe, Protocol
from corrigenda.errors import BadConfig
from corrigenda.facts import Fact
from corrigenda.metrics.metric import RunRecords
from corrigenda.metrics.registry import evaluate, metric
from corrigenda.rows import Measurement
from corrigenda.run.spec import RunSpec
from corrigenda.run.survival import SurvivalMeter, list_facts

FACT = Fact(prompt="The capital of France is", subject="France", target="Rome")
CASE = Case(
    id="7",
    facts=(FACT,),
    probes=(
        Probe(prompt="France's capital is", role="generalization", protocol=Protocol.GREEDY),
        Probe(prompt="France's capital is", role="generalization", protocol=Protocol.RANK),
        Probe(prompt="The capital of Germany is", role="locality/n", protocol=Protocol.GREEDY),
        Probe(prompt="Rome is in", role="portability", protocol=Protocol.GREEDY),
    ),
)


def record(name: str, case: str, right: float, asked: float, edits: int = 0) -> Measurement:
    return Measurement(case=case, name=name, values=[right, asked], edits=edits)


def test_facts_have_the_prompts_of_the_probes() -> None:
    (fact,) = list_facts(CASE)
    assert fact.paraphrases == ("France's capital is",)
    assert fact.neighbours == ("The capital of Germany is",)


def test_shares_are_over_cases_of_the_last_moment() -> None:
    """Three of four and one of four prompts: a half; an earlier moment is not read."""
    name = "survival/q4_0 merged/paraphrases"
    records = [record(name, "a", 3, 4, 2), record(name, "b", 1, 4, 2), record(name, "a", 4, 4, 1)]
    found = metric(name).compute(RunRecords([], records), cg.metrics.estimate.BOOTSTRAP)
    assert (found.value, found.n) == (0.5, 2)
    assert [one.metric for one in evaluate(RunRecords([], records))] == [name]


def test_a_type_that_does_not_exist_is_refused_before_the_run() -> None:
    with pytest.raises(BadConfig, match="forms"):
        RunSpec(editor="rome", benchmark="pocketedit", after={"forms": ["q9_9"]})


def test_without_treatments_the_run_has_the_name_it_had() -> None:
    spec = RunSpec(editor="rome", benchmark="pocketedit")
    treated = RunSpec(editor="rome", benchmark="pocketedit", after={"forms": ["q8_0"]})
    assert "after" in spec.model_dump()
    assert spec.digest() != treated.digest()


def test_the_meter_asks_after_each_treatment_and_leaves_the_model() -> None:
    pytest.importorskip("gguf", reason="weights are quantised by gguf")
    lm = cg.load("pocket")
    meter = SurvivalMeter(lm, ["q8_0"])
    patch = cg.edit(lm, FACT, "memit")
    assert list(meter.measure(lm, [CASE])) == []
    before = lm.digest()
    with patch.apply(lm):
        found = {one.name: (one.right, one.asked) for one in meter.measure(lm, [CASE])}
    assert lm.digest() == before
    assert set(found) == {
        f"survival/q8_0 {placing}/{kind}"
        for placing in ("merged", "adapter")
        for kind in ("efficacy", "paraphrases", "neighbours")
    }
    assert found["survival/q8_0 merged/efficacy"] == (1, 1)
    assert found["survival/q8_0 adapter/neighbours"] == (1, 1)
    with cg.edit(lm, FACT, "grace").apply(lm):
        assert list(meter.measure(lm, [CASE])) == []
