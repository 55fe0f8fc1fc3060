"""Every probe that a benchmark asks is read by a metric, and every metric is fed by a benchmark."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable

import pytest

from corrigenda.benchmarks.benchmark import BENCHMARKS, LoadedBenchmark
from corrigenda.benchmarks.robustness_contexts import add_surroundings
from corrigenda.cases import SURROUNDINGS, Case, Probe, Protocol
from corrigenda.metrics import registry
from corrigenda.metrics.metric import RunRecords
from corrigenda.rows import Row, Stage, tags
from corrigenda.run.plan import list_due
from tests.support.all_benchmarks import load_all

Reading = dict[str, tuple[float, ...]]

# Located, not asked: what is found of them are measurements.
LOCATED = "klob"

ALL = [one.name for one in registry.METRICS if one.protocol is not None]
# Texts and items that a recipe names under `health`, whatever the benchmark.
OF_HEALTH = ("perplexity", "task")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> list[LoadedBenchmark]:
    return list(load_all(tmp_path_factory.mktemp("benchmarks")))


def answered(case: Case, number: int, probe: Probe, rounds: int, seed: int) -> Row:
    """A row as a run records it, with an answer that no other probe has.

    With an even seed edits succeed and conditions hold, so that what depends on them is read.
    """
    draw = random.Random(f"{seed}/{case.id}/{number}/{probe.role}/{probe.protocol}/{rounds}")
    holds = probe.role in ("condition", "reliability") and seed % 2 == 0
    right = holds or draw.random() < 0.5
    spellings = [group[0] for group in probe.expected]
    answer = " and ".join(spellings) if right and spellings else f"word {draw.random()} of a text"
    stage = Stage.AFTER if rounds else Stage.BEFORE
    tokens = [draw.random() for _ in range(6)]
    return Row(
        case=case.id,
        probe=number,
        role=probe.role,
        protocol=probe.protocol,
        against=probe.against,
        prompt=probe.prompt,
        expected=[list(group) for group in probe.expected],
        rivals=list(probe.rivals),
        test=probe.test,
        every=probe.every,
        stage=stage,
        rounds=rounds,
        answer=answer,
        answer_before=answer if draw.random() < 0.5 else "something else",
        token_ids=[1, 2, 3],
        predicted=[1, 2, 3 if right else 4],
        predicted_before=[1, draw.choice([2, 5]), draw.choice([3, 4])],
        log_probs=[-one for one in tokens[:3]],
        log_probs_before=[-one for one in tokens[3:]],
        rival_log_probs=[[-draw.random()] for _ in probe.rivals],
        rival_log_probs_before=[[-draw.random()] for _ in probe.rivals],
        divergence=[draw.random()] if probe.divergence else None,
        divergence_reversed=[draw.random()] if probe.divergence else None,
        vocabulary=10,
        ended=draw.random() < 0.5,
        verdict=draw.choice(["A", "B"]),
        verdict_before=draw.choice(["A", "B"]),
        tags=tags(case.meta),
    )


def rows_of(cases: Iterable[Case], seed: int = 0) -> list[Row]:
    """Everything that is asked of cases, each edited by itself."""
    return [
        answered(case, number, probe, rounds, seed)
        for case in cases
        for rounds in range(len(case.edits) + 1)
        for number, probe in list_due(case, rounds)
    ]


def read(rows: list[Row], names: Iterable[str] = ALL) -> Reading:
    """What the metrics make of rows."""
    found = registry.evaluate(RunRecords(rows), names)
    return {one.metric: (one.value, one.low, one.n, one.items) for one in found if one.n}


def test_all_benchmarks_are_here(loaded: list[LoadedBenchmark]) -> None:
    assert {one.benchmark for one in loaded} == set(BENCHMARKS.names())
    assert all(len(one) for one in loaded)


def test_every_probe_is_read_by_a_metric(loaded: list[LoadedBenchmark]) -> None:
    """Without its rows, some number is another."""
    for one in loaded:
        if one.benchmark == LOCATED:
            continue
        unread: set[tuple[object, ...]] | None = None
        for seed in range(4):
            rows = rows_of(one, seed)
            whole = str(read(rows))
            if unread is None:
                unread = {(row.role, row.protocol, row.rounds) for row in rows}
            for asked in set(unread):
                rest = [row for row in rows if (row.role, row.protocol, row.rounds) != asked]
                if str(read(rest)) != whole:
                    unread.remove(asked)
            if not unread:
                break
        assert not unread, (one.benchmark, one.options)


def test_every_metric_is_fed_by_a_benchmark(loaded: list[LoadedBenchmark]) -> None:
    fed: set[str] = set()
    for one in loaded:
        if one.benchmark == LOCATED:
            continue
        for seed in (0, 1):
            fed |= read(rows_of(one, seed)).keys()
            fed |= read(rows_of((case.under(*Protocol) for case in one), seed)).keys()
        fed |= read(rows_of(add_surroundings(case, SURROUNDINGS) for case in one)).keys()
    sequence = [
        dataclasses.replace(one, position=position, edits=edits)
        for loaded_one in loaded
        if loaded_one.options.get("part") == "modification"
        for position, case in enumerate(loaded_one, start=1)
        for edits in range(position, len(loaded_one) + 1)
        for one in rows_of([case.under(*Protocol)], edits)
    ]
    fed |= read(sequence).keys()
    wanted = {
        one.name
        for one in registry.METRICS
        if one.protocol is not None and one.reads.partition("/")[0] not in OF_HEALTH
    }
    assert wanted - fed == set()
