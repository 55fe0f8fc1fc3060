"""KnowEdit WikiData_recent: facts that became true after July 2022."""

from __future__ import annotations

from typing import ClassVar, Literal

from corrigenda.benchmarks.knowedit.records import KnowEditFacts


class KnowEditRecent(KnowEditFacts):
    """Insertion of recent facts, with portability and locality by sub-type."""

    name: ClassVar[str] = "knowedit-recent"
    expects: ClassVar[tuple[str, ...]] = ("portability", "locality")
    headline: ClassVar[tuple[str, ...]] = (
        "reliability@teacher_forced",
        "portability@teacher_forced",
        "locality@teacher_forced",
        "fluency@greedy",
    )
    edit: ClassVar[str] = "insertion"
    part: Literal["test", "train"] = "test"
