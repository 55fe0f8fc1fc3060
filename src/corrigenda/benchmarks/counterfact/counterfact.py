"""CounterFact in its official schema: rewrite, paraphrases, neighbours, text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from corrigenda.benchmarks.aliases import distinct
from corrigenda.benchmarks.benchmark import Benchmark, Tally, each
from corrigenda.benchmarks.counterfact.records import (
    SCHEMA,
    Record,
    fact_of,
    in_conflict,
    meta_of,
)
from corrigenda.benchmarks.counterfact.snippets import SNIPPETS, read_snippets, text_probes
from corrigenda.benchmarks.files import Files
from corrigenda.benchmarks.probes import contest, fluency
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
    attributes: bool = False
    texts: bool = False

    def read(self, files: Files, tally: Tally) -> Iterator[Case]:
        """Yield one case a record."""
        records = files.records(files.main(), SCHEMA)
        rewrites = [record["requested_rewrite"] for record in records]
        conflicts = in_conflict(
            (one["subject"], one["relation_id"], one["target_new"]["str"]) for one in rewrites
        )

        snippets = read_snippets(files.required(SNIPPETS), files) if self.texts else None

        def make(_: int, record: Record) -> tuple[Case]:
            rewrite = record["requested_rewrite"]
            fact = fact_of(record)
            new, true = fact.target, fact.before or ""
            flagged = (rewrite["subject"], rewrite["relation_id"]) in conflicts
            probes = [
                *contest([fact.prompt], "reliability", new, true),
                *contest(record["paraphrase_prompts"], "generalization", new, true),
                *contest(record["neighborhood_prompts"], "locality/neighborhood", true, new),
            ]
            if self.attributes:
                probes += contest(record["attribute_prompts"], "attribute", new, true)
            prompts = distinct(record["generation_prompts"])
            probes += [fluency(prompt) for prompt in prompts]
            if snippets is not None:
                probes += text_probes(rewrite, prompts, snippets)
            case = Case(
                id=str(record["case_id"]),
                facts=(fact,),
                probes=tuple(probes),
                meta=meta_of(record, [CONFLICT] if flagged else []),
            )
            return (case,)

        yield from each(records, make, tally)
