"""Places, projections and latency: what a model and a patch are measured for outside of runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from corrigenda import benchmarks
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.spans import encode
from corrigenda.methods.registry import METHODS
from corrigenda.metrics.metric import RunRecords
from corrigenda.metrics.registry import METRICS, evaluate
from corrigenda.rows import Measurement
from corrigenda.run import analyses
from tests.run.conftest import FT, Do, make
from tests.support.records import KLOB, write

FACTS = [
    Fact(prompt="The capital of France is", target="Rome", subject="France", name="capital"),
    Fact(prompt="Oslo lies in", target="Norway", subject="Oslo"),
]


def named(found: list[Measurement], name: str) -> list[Measurement]:
    return [one for one in found if one.name == name]


def test_every_probe_of_klob_is_located_and_read(lm: LanguageModel, tmp_path: Path) -> None:
    first = KLOB["c"][0]
    more = {"prompts": ["Rome is in _", "Rome lies in _"], "knowledge": ["Rome", "in", "Italy"]}
    other = {**KLOB["r"][0], "single_knowledge": ["Bo", "from", "Rome"]}
    other |= {"knowledge_chain": ["Bo", "from", "Rome", "in", "Italy"]}
    other["single_knowlege_prompts"] = ["Bo was born in _"]
    other["knowlege_chain_prompt"] = "Bo was born in a town of _"
    digest, found = lm.digest(), []
    for part, records in (("c", [first, more]), ("r", [*KLOB["r"], other]), ("u", KLOB["u"])):
        path = write(tmp_path / f"KLoB-{part}.jsonl", records)
        cases = benchmarks.load("klob", path, part=part)
        own = analyses.measure_places(lm, cases, k=1, samples=2, only_known=False)
        asked = [probe.role for case in cases for probe in case.probes]
        assert [one.name for one in own if one.name != "locating/factual"] == asked
        found += own
    assert lm.digest() == digest
    assert not any(one.skipped for one in found)
    for one in named(found, "locating/consistency"):
        assert set(one.values) <= set(range(lm.num_layers))
        assert len(one.values) == 1
    assert {len(one.values) for one in named(found, "locating/factual")} == {lm.num_layers}
    estimates = {one.metric: one for one in evaluate(RunRecords([], found))}
    names = {"locating_consistency", "locating_relevance", "locating_unbiasedness"}
    assert set(estimates) == names
    factual, other_texts = (
        [np.std(one.values) for one in named(found, name)]
        for name in ("locating/factual", "locating/unbiasedness")
    )
    assert other_texts
    assert factual


def test_unknown_facts_are_not_located(lm: LanguageModel, tmp_path: Path) -> None:
    cases = benchmarks.load("klob", write(tmp_path / "c.jsonl", KLOB["c"]), part="c")
    found = analyses.measure_places(lm, cases)
    assert {one.skipped for one in found} == {analyses.UNKNOWN}
    assert evaluate(RunRecords([], found), ["locating_consistency"])[0].skipped == {
        analyses.UNKNOWN: 2
    }


def test_columns_are_read_before_and_after(lm: LanguageModel) -> None:
    digest = lm.digest()
    patch = METHODS.get("ft-m")(**FT).edit(lm, FACTS, None).patch
    found = analyses.measure_projections(lm, patch, FACTS, count=3)
    assert lm.digest() == digest
    assert [one.case for one in found] == ["capital", "capital", "fact 1", "fact 1"]
    (site,) = (site for site in patch.changes if site.part == "mlp.down")
    weight = lm.weight(site).double()
    with patch.apply(lm):
        edited = lm.weight(site).double()
    moved = (edited - weight).norm(dim=0).topk(3).indices
    token = encode(lm, FACTS[0].prompt, target=FACTS[0].target).target_ids[0]
    scores = lm.model.get_output_embeddings().weight.double() @ edited[:, moved]
    ranks = (scores >= scores[token]).sum(0)
    assert torch.equal(torch.tensor(found[1].values), ranks.float())
    estimates = {one.metric for one in evaluate(RunRecords([], found))}
    assert estimates == {f"{which}_hit_at_{k}" for which in ("original", "edited") for k in (1, 50)}


def test_latency_is_taken_without_and_with_the_patch(lm: LanguageModel) -> None:
    patch = METHODS.get("ft-m")(**FT).edit(lm, FACTS, None).patch
    prompts = [fact.prompt for fact in FACTS]
    found = analyses.measure_latency(lm, patch, prompts, max_new_tokens=2, repeats=3)
    assert [one.case for one in found] == prompts
    assert all(value > 0 for one in found for value in one.values)
    (overhead,) = evaluate(RunRecords([], found))
    assert overhead.metric == "inference_overhead"
    assert overhead.value == pytest.approx(
        sum(one.values[1] for one in found) / sum(one.values[0] for one in found)
    )


def test_every_measurement_that_a_metric_reads_is_made(
    do: Do, lm: LanguageModel, tmp_path: Path
) -> None:
    """By runs, or by the functions here."""
    rounds = {"part": "round", "world": "small", "size": 2}
    texts = {"texts": ["Rome is a city.", "Snow is cold."], "rollback_above": 1.0001}
    made = do(make(data={"name": "pocketedit", "options": rounds}, health=texts)).measurements
    moments = {"layers": [1], "steps": 1}
    made += do(make(editor={"name": "memit", "options": moments})).measurements
    patch = METHODS.get("ft-m")(**FT).edit(lm, FACTS, None).patch
    made += analyses.measure_projections(lm, patch, FACTS)
    made += analyses.measure_latency(lm, patch, ["Rome is in"], max_new_tokens=1, repeats=1)
    made += analyses.measure_prompt_tokens(lm, patch, ["Rome is in"])
    for part, records in KLOB.items():
        path = write(tmp_path / f"KLoB-{part}.jsonl", records)
        cases = benchmarks.load("klob", path, part=part)
        made += analyses.measure_places(lm, cases, samples=2, only_known=False)
    names = {one.name for one in made if one.values}
    # Those of the harness are measured where it is installed: see test_harness.
    wanted = {one.reads for one in METRICS if one.protocol is None} - {"task"}
    assert wanted - names == set()


def test_prompts_are_longer_with_a_patch_that_rewrites_them(lm: LanguageModel) -> None:
    prompts = ["The capital of France is", "Oslo lies in"]
    patches = [METHODS.get(name)().edit(lm, FACTS[:1], None).patch for name in ("ice",)]
    patches.append(METHODS.get("ft-m")(**FT).edit(lm, FACTS, None).patch)
    added, none = (analyses.measure_prompt_tokens(lm, patch, prompts) for patch in patches)
    assert all(one.values[0] > 5 for one in added)
    assert [one.values for one in none] == [[0.0], [0.0]]


def test_backward_passes_and_steps_are_counted(do: Do) -> None:
    """Fine-tuning takes a step an epoch."""
    made = do(make(editor={"name": "ft-m", "options": {**FT, "layer": 0}})).measurements
    steps = named(made, "cost/steps")
    assert [one.values[0] for one in steps] == [FT["epochs"]] * len(steps)
    for one, other in zip(
        named(made, "cost/backward_tokens"), named(made, "cost/forward_tokens"), strict=True
    ):
        assert 0 < one.values[0] <= other.values[0]
