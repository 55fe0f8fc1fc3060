"""CounterFact+, derived from CounterFact: neighbours behind the statement that was edited in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

from corrigenda.benchmarks.benchmark import Benchmark, Tally, each
from corrigenda.benchmarks.counterfact.records import SCHEMA, Record, fact_of, meta_of
from corrigenda.benchmarks.files import Files
from corrigenda.benchmarks.probes import contest
from corrigenda.cases import Against, Case, Probe, Protocol


class CounterFactPlus(Benchmark):
    """Specificity with and without a distracting sentence, by contest and by divergence."""

    name: ClassVar[str] = "counterfact-plus"

    def read(self, files: Files, tally: Tally) -> Iterator[Case]:
        """Yield one case a record."""

        def make(_: int, record: Record) -> tuple[Case]:
            fact = fact_of(record)
            new, true = fact.target, fact.before or ""
            plain = [prompt for prompt in record["neighborhood_prompts"] if prompt.strip()]
            distracted = [f"{fact.prompt} {new}. {prompt}" for prompt in plain]
            probes = (
                *contest([fact.prompt], "reliability", new, true),
                *contest(plain, "locality/neighborhood", true, new),
                *contest(distracted, "locality/distracted_neighborhood", true, new),
                *_divergence(plain, "divergence/neighborhood"),
                *_divergence(distracted, "divergence/distracted_neighborhood"),
            )
            case = Case(
                id=str(record["case_id"]), facts=(fact,), probes=probes, meta=meta_of(record)
            )
            return (case,)

        yield from each(files.records(files.main(), SCHEMA), make, tally)


def _divergence(prompts: Iterable[str], role: str) -> Iterator[Probe]:
    for prompt in prompts:
        yield Probe(
            prompt=prompt.strip(),
            role=role,
            protocol=Protocol.GREEDY,
            against=Against.UNEDITED,
            divergence=True,
            max_new_tokens=1,
        )
