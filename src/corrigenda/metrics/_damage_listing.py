"""The registry's table, second part: conflicts, collapse, robustness, analysis, cost."""

from __future__ import annotations

from collections.abc import Iterator

from corrigenda.cases import SURROUNDINGS, Protocol
from corrigenda.metrics import (
    collapse,
    conflict,
    cost,
    error_types,
    locality,
    locating,
    projection,
    robustness,
    round_trip,
    sequences,
)
from corrigenda.metrics._entry import DIFFERENCE, HIGHER, LOWER, POSITIVE, entry
from corrigenda.metrics.registry import Metric
from corrigenda.metrics.success import metric_name


def damage() -> Iterator[Metric]:
    """What edits do to each other and to the model, and what they cost."""
    yield from _conflict()
    yield from _restored()
    yield from _sequences()
    yield from _health()
    yield from _measurements()


def _conflict() -> Iterator[Metric]:
    unbounded = (None, 1.0)
    yield entry(
        "conflict_score@rank", "the later edit wins", conflict.conflict_score, reads=conflict.NEW
    )
    yield entry(
        "conflict_score_implied@rank",
        "the later edit's consequence wins",
        conflict.conflict_score,
        reads=conflict.IMPLIED,
        options={"implied": True},
    )
    yield entry(
        "conflict_magnitude@rank",
        "probability taken from the earlier edit, clipped at -1",
        conflict.conflict_magnitude,
        reads=conflict.OLD,
        span=DIFFERENCE,
    )
    yield entry(
        "conflict_magnitude_unclipped@rank",
        "probability taken from the earlier edit",
        conflict.conflict_magnitude,
        reads=conflict.OLD,
        span=unbounded,
        options={"clipped": False},
    )
    for intermediate in (False, True):
        yield entry(
            f"tied_fact_damage{'_intermediate' if intermediate else ''}@rank",
            "probability the tying fact loses",
            conflict.tied_fact_damage,
            reads=conflict.TIED,
            better=LOWER,
            span=unbounded,
            options={"intermediate": intermediate},
        )
    yield entry(
        "success_alone@rank",
        "the later edit alone wins",
        conflict.success_alone,
        reads=conflict.ALONE,
    )
    yield entry(
        "round_success@rank",
        "both edits of a round trip succeed",
        conflict.round_success,
        reads=conflict.BACK,
    )
    parts = {"divergence": "distortion", "ignored": "ignore_rate", "failed": "failure_rate"}
    for part, name in parts.items():
        yield entry(
            f"{name}@rank",
            "what a round trip leaves among true objects",
            conflict.round_distortion,
            reads=conflict.TRUE_OBJECT,
            better=LOWER,
            options={"part": part},
        )
    yield entry(
        "distortion_legacy@rank",
        "the same, divided by the number of objects",
        conflict.round_distortion,
        reads=conflict.TRUE_OBJECT,
        better=LOWER,
        legacy=True,
        options={"legacy_mean": True},
    )


def _restored() -> Iterator[Metric]:
    """What the model says once it was edited and edited back."""
    for measure in (None, "sentence", "tokens"):
        yield entry(
            metric_name("restoration", Protocol.GREEDY, measure),
            "answers that are as before, edited back",
            locality.unchanged,
            "restoration",
            reads="restoration",
            options={"protocol": Protocol.GREEDY, "measure": measure},
        )
    yield entry(
        "restoration_divergence@greedy",
        "KL divergence from the unedited model, edited back",
        locality.mean_divergence,
        "restoration",
        reads="restoration",
        better=LOWER,
        span=POSITIVE,
        scale=1.0,
        options={"protocol": Protocol.GREEDY},
    )


def _sequences() -> Iterator[Metric]:
    titles = {
        "immediate_success": "success of each edit right after it",
        "retention": "success of each edit after the last",
        "forgetting": "success lost since its best",
    }
    for name, title in titles.items():
        for protocol in Protocol:
            yield entry(
                metric_name(name, protocol),
                title,
                sequences.summary,
                name,
                reads="reliability",
                better=LOWER if name == "forgetting" else HIGHER,
                sequence=True,
                options={"protocol": protocol},
            )


def _health() -> Iterator[Metric]:
    for pooling in ("mean", "median", "corpus"):
        yield entry(
            "perplexity@teacher_forced" + ("" if pooling == "mean" else f":{pooling}"),
            "perplexity of plain text",
            collapse.perplexity,
            reads="perplexity",
            better=LOWER,
            span=(1.0, None),
            scale=1.0,
            options={"pooling": pooling},
        )
    yield entry(
        "perplexity_ratio@teacher_forced",
        "perplexity over that of the unedited model",
        collapse.perplexity_ratio,
        reads="perplexity",
        better=LOWER,
        span=POSITIVE,
        scale=1.0,
    )
    yield entry(
        "rolled_back",
        "edits taken back, which raised perplexity too far",
        collapse.rolled_back,
        reads=collapse.ROLLBACK,
        better=LOWER,
    )
    yield entry(
        "robustness_accuracy@greedy",
        "the new answer in other surroundings",
        robustness.attack_accuracy,
        reads="robustness",
    )
    yield entry(
        "robustness_reversion@greedy",
        "the old answer in other surroundings",
        robustness.reversion,
        reads="robustness",
        better=LOWER,
    )
    for kind in SURROUNDINGS:
        role = f"robustness/{kind}"
        yield entry(
            f"{role}_accuracy@greedy",
            "the new answer in these surroundings",
            robustness.attack_accuracy,
            role,
            reads=role,
        )
        yield entry(
            f"{role}_reversion@greedy",
            "the old answer in these surroundings",
            robustness.reversion,
            role,
            reads=role,
            better=LOWER,
        )
    for state in robustness.State:
        better = HIGHER if state == robustness.State.KEPT else LOWER
        yield entry(
            f"robustness_{state}@greedy",
            "outputs in this state",
            robustness.share_in_state,
            state,
            reads="robustness",
            better=better,
        )
        yield entry(
            f"dialogue_{state}@greedy",
            "dialogues that end in this state",
            robustness.dialogue_state,
            state,
            reads="robustness/dialogue",
            better=better,
        )
    for outcome in error_types.FAILURES:
        yield entry(
            f"errors_{outcome}@greedy",
            "share of failures of this type",
            error_types.share_of_failures,
            outcome,
            reads="reliability",
            better=LOWER,
        )


def _measurements() -> Iterator[Metric]:
    for name, title in cost.COSTS.items():
        yield entry(
            f"cost/{name}",
            title,
            cost.cost,
            name,
            reads=f"cost/{name}",
            better=LOWER,
            span=POSITIVE,
            scale=1.0,
        )
    yield entry(
        "inference_overhead",
        "latency over that without the edit",
        cost.inference_overhead,
        reads="cost/latency",
        better=LOWER,
        span=POSITIVE,
        scale=1.0,
    )
    yield entry(
        "locating_consistency",
        "sentences of a fact have one place",
        locating.locating_consistency,
        reads="locating/consistency",
    )
    yield entry(
        "locating_relevance",
        "chains have the place of their facts",
        locating.locating_relevance,
        reads="locating/relevance_chain",
    )
    yield entry(
        "parameter_residual",
        "share of an edit that editing back leaves",
        round_trip.mean_residual,
        reads=round_trip.RESIDUAL,
        better=LOWER,
        span=POSITIVE,
        scale=1.0,
    )
    yield entry(
        "graph_residual",
        "the same of a graph of facts",
        round_trip.mean_residual,
        round_trip.GRAPH,
        reads=round_trip.GRAPH,
        better=LOWER,
        span=POSITIVE,
        scale=1.0,
    )
    for which in ("original", "edited"):
        for k in (1, 50):
            yield entry(
                f"{which}_hit_at_{k}",
                "the target among the words of the columns that moved most",
                projection.hit_rate,
                k,
                reads=f"projection/{which}",
                options={"name": f"projection/{which}"},
            )
