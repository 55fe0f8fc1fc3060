"""The table behind the registry: one line for each metric."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from corrigenda.cases import Protocol
from corrigenda.metrics import (
    consistency,
    counterfact,
    erasure,
    fluency,
    locality,
    ripple,
    sentiment,
    success,
)
from corrigenda.metrics._damage_listing import damage
from corrigenda.metrics._entry import (
    AS_BEFORE,
    DIFFERENCE,
    LOWER,
    POSITIVE,
    SHARE,
    entry,
)
from corrigenda.metrics._task_listing import all_tasks
from corrigenda.metrics.registry import Metric
from corrigenda.metrics.success import metric_name

FED, GREEDY = Protocol.TEACHER_FORCED, Protocol.GREEDY


def _measured_as(
    known: Mapping[Protocol, Mapping[str, object]],
) -> Iterator[tuple[Protocol, str | None]]:
    """Every protocol with its default measure, unnamed, and then its others."""
    for protocol, names in known.items():
        yield protocol, None
        for name in list(names)[1:]:
            yield protocol, name


def _success() -> Iterator[Metric]:
    titles = {
        "reliability": "the new answer, where it was edited",
        "generalization": "the new answer, asked in other words",
        "portability": "consequences of the edit",
    }
    for role, title in titles.items():
        for protocol, measure in _measured_as(success.MEASURES):
            yield entry(
                metric_name(role, protocol, measure),
                title,
                success.success,
                role,
                reads=role,
                options={"protocol": protocol, "measure": measure},
            )


def _locality() -> Iterator[Metric]:
    for protocol, measure in _measured_as(locality.UNCHANGED):
        yield entry(
            metric_name("locality", protocol, measure),
            "answers that are as before",
            locality.unchanged,
            reads="locality",
            options={"protocol": protocol, "measure": measure},
        )
    for protocol in (FED, GREEDY):
        yield entry(
            metric_name("locality_correct", protocol),
            "known answers that are still right",
            locality.still_correct,
            reads="locality",
            options={"protocol": protocol},
        )
    for reverse in (False, True):
        name = "locality_divergence" + ("_reversed" if reverse else "")
        yield entry(
            metric_name(name, FED),
            "KL divergence from the unedited model",
            locality.mean_divergence,
            reads="locality",
            better=LOWER,
            span=POSITIVE,
            scale=1.0,
            legacy=reverse,
            options={"protocol": FED, "reverse": reverse},
        )
    yield entry(
        "drawdown@teacher_forced",
        "accuracy lost elsewhere",
        locality.drawdown,
        reads="locality",
        better=LOWER,
        span=DIFFERENCE,
    )
    yield entry(
        "drawdown_perplexity@teacher_forced",
        "perplexity gained elsewhere",
        locality.perplexity_drawdown,
        reads="locality",
        better=LOWER,
        span=(None, None),
        scale=1.0,
    )


def _counterfact() -> Iterator[Metric]:
    for what, role in counterfact.ROLES.items():
        for function, span in ((counterfact.score, SHARE), (counterfact.magnitude, DIFFERENCE)):
            kind = function.__name__
            title = "the expected answer is likelier" + (
                "" if function is counterfact.score else ", by how much"
            )
            yield entry(f"{what}_{kind}@rank", title, function, what, reads=role, span=span)
    yield entry(
        "score@rank",
        "harmonic mean of efficacy, paraphrase and neighborhood",
        counterfact.harmonic_score,
        reads="reliability",
    )
    for what in ("neighborhood", "distracted_neighborhood"):
        for flags in ({}, {"reverse": True, "legacy_vocabulary_mean": True}):
            yield entry(
                f"{what}_divergence{'_reversed_legacy' if flags else ''}@greedy",
                "KL divergence of the next token from the unedited model",
                counterfact.neighborhood_divergence,
                what,
                reads=f"divergence/{what}",
                better=LOWER,
                span=POSITIVE,
                scale=1.0,
                legacy=bool(flags),
                options=flags,
            )


def _consequences() -> Iterator[Metric]:
    for criterion, role in ripple.CRITERIA.items():
        for flags in ({}, {"only_successful": False}, {"legacy": True}):
            suffix = "_unconditional" if "only_successful" in flags else ""
            suffix += "_legacy" if "legacy" in flags else ""
            yield entry(
                f"{criterion}{suffix}@greedy:contains",
                "tests of consequences that pass",
                ripple.ripple_accuracy,
                criterion,
                reads=role,
                legacy="legacy" in flags,
                options=flags,
            )
    yield entry("edit_wise@greedy", "edited facts recalled", ripple.edit_wise, reads="reliability")
    yield entry(
        "instance_wise@greedy",
        "cases with every fact of the chain recalled",
        ripple.instance_wise,
        reads=ripple.CHAIN,
    )
    for pooling in ("any", "all", "mean"):
        yield entry(
            f"multi_hop@greedy:{pooling}",
            "questions over several hops",
            ripple.multi_hop,
            reads=ripple.QUESTIONS,
            options={"pooling": pooling},
        )
    yield entry(
        "multi_hop_stale@greedy:any",
        "questions over several hops with the old answer",
        ripple.multi_hop,
        reads=ripple.QUESTIONS,
        better=LOWER,
        options={"stale": True},
    )
    yield entry(
        "multi_hop_given_instance@greedy:any",
        "the same, where every fact of the chain is recalled",
        ripple.multi_hop_given_instance,
        reads=ripple.QUESTIONS,
    )


def _text() -> Iterator[Metric]:
    for legacy in (False, True):
        yield entry(
            f"fluency{'_legacy' if legacy else ''}@greedy",
            "entropy of bigrams and trigrams, in bits",
            fluency.fluency,
            reads="fluency",
            better=AS_BEFORE,
            span=POSITIVE,
            legacy=legacy,
            options={"legacy": legacy},
        )
    yield entry(
        "fluency_change@greedy",
        "fluency less that of the unedited model",
        fluency.fluency_change,
        reads="fluency",
        better=AS_BEFORE,
        span=(None, None),
    )
    yield entry(
        "consistency@greedy",
        "likeness to texts about the new object",
        consistency.consistency,
        reads="consistency",
    )
    for legacy in (False, True):
        yield entry(
            f"essence{'_legacy' if legacy else ''}@teacher_forced",
            "perplexity of a text about the subject",
            consistency.essence,
            reads="essence",
            better=LOWER,
            span=(1.0, None),
            scale=1.0,
            legacy=legacy,
            options={"legacy": legacy},
        )
    for part in ("success", "sentiment", "topic"):
        yield entry(
            f"{'sentiment' if part == 'sentiment' else f'sentiment_{part}'}@rank",
            "wanted attitude, on the same topic",
            sentiment.sentiment_success,
            reads=sentiment.WANTED,
            options={"part": part},
        )
    for legacy in (False, True):
        yield entry(
            f"refusal{'_legacy' if legacy else ''}@greedy",
            "questions to forget that are refused",
            erasure.refusal,
            reads="erasure",
            legacy=legacy,
            options={"legacy": legacy},
        )
    yield entry(
        "leak@greedy",
        "questions to forget that are answered",
        erasure.leak,
        reads="erasure",
        better=LOWER,
    )
    yield entry(
        "over_refusal@greedy",
        "questions to keep that are refused",
        erasure.over_refusal,
        reads="locality/retained",
        better=LOWER,
    )


METRICS: tuple[Metric, ...] = (
    *_success(),
    *_locality(),
    *_counterfact(),
    *_consequences(),
    *_text(),
    *damage(),
    *all_tasks(),
)
"""All metrics, group by group."""
