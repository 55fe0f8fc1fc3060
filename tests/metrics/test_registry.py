"""The registry: every metric under its name, in its range, from the rows it says it reads."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from corrigenda.cases import NATURAL, SURROUNDINGS, Against, Protocol
from corrigenda.errors import NotResampled, UnknownMetric
from corrigenda.metrics import registry
from corrigenda.metrics.cost import COSTS
from corrigenda.metrics.estimate import BOOTSTRAP, Bootstrap
from corrigenda.metrics.metric import Better, Metric, RunRecords
from corrigenda.metrics.selection import at
from corrigenda.metrics.success import MEASURES
from corrigenda.rows import Measurement, Row, Stage
from tests.support.rows import FED, GREEDY, RANK

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
METRICS = registry.METRICS

ROLES = {
    "reliability",
    "generalization",
    "portability/chain",
    "portability/multi_hop",
    "portability/multi_hop_thoughts",
    "portability/logical_generalization",
    "portability/compositionality_1",
    "portability/compositionality_2",
    "portability/subject_aliasing",
    "locality/forgetfulness",
    "locality/retained",
    "locality/relation_specificity",
    "divergence/neighborhood",
    "divergence/distracted_neighborhood",
    "fluency",
    "consistency",
    "essence",
    "sentiment/wanted",
    "sentiment/opposite",
    "erasure",
    "perplexity",
    "restoration/edited",
    *(f"robustness/{kind}" for kind in SURROUNDINGS),
    "unseen_text",
    "doubted/turn_1",
}
PEAK = {
    "rival_log_probs": [[-0.1], [-1.0], [-1.0]],
    "rival_log_probs_before": [[-0.1], [-2.0], [-2.0]],
}
BEFORE = {"before/chain", "before/multi_hop", "before/multi_hop_thoughts"}
RANKED = {
    "attribute",
    *("conflict/old", "conflict/new", "conflict/implied", "conflict/tied", "conflict/single"),
    *("round/there", "round/back", "locality/neighborhood", "locality/distracted_neighborhood"),
    *("property/changed", "property/unchanged", "reverse/membership"),
}


def row(
    role: str, protocol: Protocol, case: str, *, rounds: int = 2, probe: int = 0, **more
) -> Row:
    local = role.startswith(("locality", "restoration")) and role not in RANKED
    more.setdefault("expected", [["Rome"]])
    return Row(
        case=case,
        role=role,
        probe=probe,
        protocol=protocol,
        rounds=rounds,
        edits=more.pop("edits", 3),
        against=Against.UNEDITED if local else Against.TARGET,
        rivals=["Paris"],
        answer="Rome and so on" if case == "1" else "Oslo was there",
        answer_before=more.pop("answer_before", "Rome" if local else "Paris"),
        token_ids=[1, 2],
        predicted=[1, 2],
        predicted_before=[1, 2] if local else [1, 3],
        log_probs=[-0.5, -1.0],
        log_probs_before=more.pop("log_probs_before", [-1.0, -2.0]),
        rival_log_probs=more.pop("rival_log_probs", [[-1.5]]),
        rival_log_probs_before=more.pop("rival_log_probs_before", [[-0.5]]),
        ended=True,
        verdict="A" if case == "1" else "B",
        verdict_before="B",
        divergence=[0.1],
        divergence_reversed=[0.2],
        vocabulary=10,
        **more,
    )


def recorded() -> RunRecords:
    rows: list[Row] = []
    for case in "123":
        rows += [row(role, protocol, case) for role in ROLES for protocol in (FED, GREEDY, RANK)]
        rows += [row(role, RANK, case) for role in RANKED]
        known = {"log_probs_before": [-0.1, -0.1], "probe": 8}
        rows.append(row("locality/neighborhood", RANK, case, **known))
        rows += [row(role, protocol, case, probe=5) for role in ROLES for protocol in NATURAL]
        rows += [
            row(role, RANK, case, probe=7, tags=["right=1", "hard=1", "random=1"], **PEAK)
            for role in ("reliability", "generalization")
        ]
        rows.append(row("fluency", Protocol.SAMPLED, case))
        rows += [Row(**{**vars(row(role, GREEDY, case)), "stage": Stage.BEFORE}) for role in BEFORE]
        rows += [
            row("reliability", protocol, case, probe=9, position=int(case), edits=edits)
            for protocol in MEASURES
            for edits in range(int(case), 4)
        ]
        rows += [row(role, RANK, case, rounds=1) for role in ("conflict/old", "conflict/tied")]
        rows.append(row("round/there", RANK, case, rounds=1))
        rows += [
            row("round/true_object", RANK, case, probe=place, expected=[[name]])
            for place, name in enumerate(("Rome", "Oslo"))
        ]
        asked = vars(row("task/a", RANK, case, tags=["answer=0"]))
        rows.append(Row(**{**asked, "rival_log_probs_before": [[-2.0]]}))
        said = vars(row("task/c", GREEDY, case, answer_before="Rome"))
        rows.append(Row(**{**said, "tags": ["answer=0", "kind=mutual", "wording=published"]}))
    measured = [
        Measurement(case=case, name=name, values=[2.0, 3.0])
        for case in "123"
        for name in (
            *(f"cost/{one}" for one in COSTS),
            *("cost/latency", "projection/edited", "projection/original"),
            *("restoration/residual", "restoration/graph"),
            *("locating/relevance_chain", "locating/relevance_single"),
            *("locating/factual", "locating/unbiasedness"),
        )
    ]
    measured += [
        Measurement(case=case, name="locating/consistency", values=[float(case), 9.0])
        for case in "112233"
    ]
    measured += [
        Measurement(case=case, name="rollback/perplexity", values=[2.0, 1.0]) for case in "123"
    ]
    measured += [
        Measurement(case="1", name="task/b.acc", values=[0.5], stage=stage) for stage in Stage
    ]
    return RunRecords(rows, measured)


RECORDS = recorded()


@pytest.mark.parametrize("one", METRICS, ids=lambda one: one.name)
def test_metric_is_computed_under_its_name_and_in_its_range(one: Metric) -> None:
    (found,) = registry.evaluate(RECORDS, [one.name])
    assert found.metric == one.name
    assert found.n >= 1, found.skipped
    assert not math.isnan(found.value)
    assert (one.low is None) or found.value >= one.low
    assert (one.high is None) or found.value <= one.high


HIERARCHICAL = Bootstrap(hierarchical=True)
# Decided by several answers at once, or by tokens of several prompts.
NOT_RESAMPLED = {
    *("locality_divergence", "locality_divergence_reversed", "drawdown", "edit_wise"),
    *("sentiment_success", "sentiment", "sentiment_topic"),
    *("conflict_score", "conflict_score_implied"),
    *("conflict_magnitude", "conflict_magnitude_unclipped"),
    *("tied_fact_damage", "tied_fact_damage_intermediate"),
    *("distortion", "distortion_legacy", "ignore_rate", "failure_rate"),
    *("locating_consistency", "locating_relevance"),
    *("taxi_success", "taxi_score", "taxi_chance"),
}


@pytest.mark.parametrize("one", METRICS, ids=lambda one: one.name)
def test_answers_are_resampled_within_cases_or_that_is_refused(one: Metric) -> None:
    records = RECORDS
    if not one.sequence:
        records = RunRecords(at(RECORDS.rows, 3), RECORDS.measurements)
    plain = one.compute(records, BOOTSTRAP)
    (shown,) = registry.evaluate(RECORDS, [one.name], bootstrap=HIERARCHICAL)
    assert (shown.value, shown.n) == (plain.value, plain.n)
    assert shown.bootstrap == HIERARCHICAL
    if one.name.partition("@")[0] in NOT_RESAMPLED:
        with pytest.raises(NotResampled, match=re.escape(one.name)):
            one.compute(records, HIERARCHICAL)
        assert math.isnan(shown.low)
    else:
        assert math.isnan(shown.low) is math.isnan(plain.low)
        if plain.items == plain.n:
            assert (shown.low, shown.high) == pytest.approx((plain.low, plain.high), nan_ok=True)


def test_names_are_unique_and_end_in_a_protocol() -> None:
    names = registry.names()
    assert len(names) == len(set(names))
    for one in METRICS:
        asked = re.fullmatch(r"[\w/]+(?:@(\w+)(?::\w+)?)?", one.name)
        assert asked is not None
        assert asked.group(1) == one.protocol


def test_every_protocol_has_its_reliability() -> None:
    assert {*Protocol} - {*MEASURES} == {Protocol.SAMPLED}
    for protocol in MEASURES:
        assert registry.metric(f"reliability@{protocol}").better == Better.HIGHER


def test_unknown_names_are_told_their_protocols() -> None:
    with pytest.raises(UnknownMetric, match='"reliability@greedy"'):
        registry.metric("reliability")
    with pytest.raises(UnknownMetric, match='"score@rank"'):
        registry.metric("scor@rank")


def test_evaluation_takes_what_finds_cases() -> None:
    rows = [row("reliability", GREEDY, "1")]
    found = {one.metric for one in registry.evaluate(RunRecords(rows))}
    assert "reliability@greedy" in found
    assert not any("legacy" in name or "rank" in name for name in found)
    (wanted,) = registry.evaluate(RunRecords(rows), ["reliability@greedy:exact"])
    assert wanted.value == 0


def test_what_repeats_another_metric_is_computed_only_if_wanted() -> None:
    """Of two answers of CounterFact, which is likelier is asked once."""
    rows = [row("reliability", RANK, "1"), row("generalization", RANK, "1")]
    found = {one.metric for one in registry.evaluate(RunRecords(rows))}
    assert {"reliability@rank", "generalization@rank", "efficacy_magnitude@rank"} <= found
    assert not found & {"efficacy_score@rank", "paraphrase_score@rank"}
    wanted = ["efficacy_score@rank", "paraphrase_score@rank"]
    same = ["reliability@rank", "generalization@rank"]
    for one, other in zip(
        registry.evaluate(RunRecords(rows), wanted),
        registry.evaluate(RunRecords(rows), same),
        strict=True,
    ):
        assert (one.value, one.low, one.n) == (other.value, other.low, other.n) or one.n == 1
        assert registry.metric(one.metric).repeats == other.metric


def test_of_a_sequence_the_last_moment_is_evaluated() -> None:
    """The first edit holds after itself and is lost after the second."""
    rows = [
        Row(**{**vars(row("reliability", GREEDY, case)), **moment})
        for case, moment in (
            ("1", {"position": 1, "edits": 1}),
            ("1", {"position": 1, "edits": 2, "answer": "Oslo"}),
            ("2", {"position": 2, "edits": 2, "answer": "Rome"}),
        )
    ]
    found = {one.metric: one.value for one in registry.evaluate(RunRecords(rows))}
    assert found["reliability@greedy"] == found["retention@greedy"] == 0.5
    assert (found["immediate_success@greedy"], found["forgetting@greedy"]) == (1, 1)


def test_rows_of_the_unedited_model_do_not_enter() -> None:
    before = row("reliability", GREEDY, "1", rounds=0)
    before = Row(**{**vars(before), "stage": Stage.BEFORE})
    assert registry.evaluate(RunRecords([before])) == []


def test_page_lists_every_metric() -> None:
    """By its name without protocol and measure, which the page explains once."""
    text = PAGE.read_text(encoding="utf-8")
    listed = set(re.findall(r"`([\w/]+)[@`]", text))
    plain = {one.name.partition("@")[0] for one in METRICS if not one.legacy}
    assert plain <= listed
