"""CounterFact in its official schema: rewrite, paraphrases, neighbours, text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from corrigenda.benchmarks.aliases import drop_repeats
from corrigenda.benchmarks.benchmark import Benchmark, Tally, make_cases
from corrigenda.benchmarks.counterfact.records import (
    SCHEMA,
    CounterFactRecord,
    find_conflicts,
    make_fact,
    make_meta,
)
from corrigenda.benchmarks.counterfact.snippets import SNIPPETS, read_snippets, text_probes
from corrigenda.benchmarks.files import BenchmarkFiles
from corrigenda.benchmarks.probes import make_fluency_probe, make_rank_probes
from corrigenda.cases import Case

CONFLICT = "another record writes another target for this subject and relation"
"""Why a case needs care where many are edited at once."""


class CounterFact(Benchmark):
    """Counterfactual edits, scored by which of two answers is more probable.

    Attributes:
        attributes: Whether the attribute prompts, about subjects that truly have the new object,
            are asked too.
        texts: Whether generated text is compared with reference texts about the new object, and
            texts about the subject are scored (`attribute_snippets.json`).
    """

    name: ClassVar[str] = "counterfact"
    expects: ClassVar[tuple[str, ...]] = ("generalization", "locality")
    headline: ClassVar[tuple[str, ...]] = (
        "score@rank",
        "efficacy_score@rank",
        "efficacy_magnitude@rank",
        "paraphrase_score@rank",
        "paraphrase_magnitude@rank",
        "neighborhood_score@rank",
        "neighborhood_magnitude@rank",
        "fluency@greedy",
        "consistency@greedy",
    )
    attributes: bool = False
    texts: bool = False

    def read(self, files: BenchmarkFiles, tally: Tally) -> Iterator[Case]:
        """Yield one case a record."""
        records = files.read_records(files.find_main(), SCHEMA)
        rewrites = [record["requested_rewrite"] for record in records]
        conflicts = find_conflicts(
            (one["subject"], one["relation_id"], one["target_new"]["str"]) for one in rewrites
        )

        snippets = read_snippets(files.require_extra(SNIPPETS), files) if self.texts else None

        def make(_: int, record: CounterFactRecord) -> tuple[Case]:
            rewrite = record["requested_rewrite"]
            fact = make_fact(record)
            new, true = fact.target, fact.before or ""
            flagged = (rewrite["subject"], rewrite["relation_id"]) in conflicts
            probes = [
                *make_rank_probes([fact.prompt], "reliability", new, true),
                *make_rank_probes(record["paraphrase_prompts"], "generalization", new, true),
                *make_rank_probes(
                    record["neighborhood_prompts"], "locality/neighborhood", true, new
                ),
            ]
            if self.attributes:
                probes += make_rank_probes(record["attribute_prompts"], "attribute", new, true)
            prompts = drop_repeats(record["generation_prompts"])
            probes += [make_fluency_probe(prompt) for prompt in prompts]
            if snippets is not None:
                probes += text_probes(rewrite, prompts, snippets)
            case = Case(
                id=str(record["case_id"]),
                facts=(fact,),
                probes=tuple(probes),
                meta=make_meta(record, [CONFLICT] if flagged else []),
            )
            return (case,)

        yield from make_cases(records, make, tally)
