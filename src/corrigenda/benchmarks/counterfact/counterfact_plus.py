"""CounterFact+, derived from CounterFact: neighbours after the statement that was edited in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

from corrigenda.benchmarks.benchmark import Benchmark, Tally, make_cases
from corrigenda.benchmarks.counterfact.records import (
    SCHEMA,
    CounterFactRecord,
    make_fact,
    make_meta,
)
from corrigenda.benchmarks.files import BenchmarkFiles
from corrigenda.benchmarks.probes import make_rank_probes
from corrigenda.cases import Against, Case, Probe, Protocol


class CounterFactPlus(Benchmark):
    """Specificity with and without a distracting sentence, by rank and by divergence."""

    name: ClassVar[str] = "counterfact-plus"
    expects: ClassVar[tuple[str, ...]] = ("locality", "divergence")
    headline: ClassVar[tuple[str, ...]] = (
        "efficacy_score@rank",
        "neighborhood_score@rank",
        "distracted_neighborhood_score@rank",
        "neighborhood_magnitude@rank",
        "distracted_neighborhood_magnitude@rank",
        "neighborhood_divergence@greedy",
        "distracted_neighborhood_divergence@greedy",
    )

    def read(self, files: BenchmarkFiles, tally: Tally) -> Iterator[Case]:
        """Yield one case a record."""

        def make(_: int, record: CounterFactRecord) -> tuple[Case]:
            fact = make_fact(record)
            new, true = fact.target, fact.before or ""
            plain = [prompt for prompt in record["neighborhood_prompts"] if prompt.strip()]
            distracted = [f"{fact.prompt} {new}. {prompt}" for prompt in plain]
            probes = (
                *make_rank_probes([fact.prompt], "reliability", new, true),
                *make_rank_probes(plain, "locality/neighborhood", true, new),
                *make_rank_probes(distracted, "locality/distracted_neighborhood", true, new),
                *_make_divergence_probes(plain, "divergence/neighborhood"),
                *_make_divergence_probes(distracted, "divergence/distracted_neighborhood"),
            )
            case = Case(
                id=str(record["case_id"]), facts=(fact,), probes=probes, meta=make_meta(record)
            )
            return (case,)

        yield from make_cases(files.read_records(files.find_main(), SCHEMA), make, tally)


def _make_divergence_probes(prompts: Iterable[str], role: str) -> Iterator[Probe]:
    for prompt in prompts:
        yield Probe(
            prompt=prompt.strip(),
            role=role,
            protocol=Protocol.GREEDY,
            against=Against.UNEDITED,
            divergence=True,
            max_new_tokens=1,
        )
