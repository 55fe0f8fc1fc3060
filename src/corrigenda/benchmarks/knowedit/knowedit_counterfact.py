"""KnowEdit WikiData_counterfact: facts of Wikidata given another object. Not ROME's CounterFact."""

from __future__ import annotations

from typing import ClassVar, Literal

from corrigenda.benchmarks.knowedit.records import KnowEditFacts


class KnowEditCounterFact(KnowEditFacts):
    """Modification of facts, with portability and locality by sub-type."""

    name: ClassVar[str] = "knowedit-counterfact"
    expects: ClassVar[tuple[str, ...]] = ("portability", "locality")
    headline: ClassVar[tuple[str, ...]] = (
        "reliability@teacher_forced",
        "portability@teacher_forced",
        "locality@teacher_forced",
        "fluency@greedy",
    )
    edit: ClassVar[str] = "modification"
    part: Literal["test", "train"] = "test"
