"""KnowEdit ZsRE: questions, each with one rephrasing and one sub-type of portability."""

from __future__ import annotations

from typing import ClassVar, Literal

from corrigenda.benchmarks.knowedit.records import KnowEditFacts


class KnowEditZsRE(KnowEditFacts):
    """Modification of answers to questions."""

    name: ClassVar[str] = "knowedit-zsre"
    expects: ClassVar[tuple[str, ...]] = ("generalization", "portability", "locality")
    headline: ClassVar[tuple[str, ...]] = (
        "reliability@teacher_forced",
        "portability@teacher_forced",
        "locality@teacher_forced",
        "fluency@greedy",
    )
    edit: ClassVar[str] = "modification"
    part: Literal["test"] = "test"
