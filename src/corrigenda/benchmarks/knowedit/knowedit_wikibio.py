"""KnowEdit WikiBio: the next sentence of a biography, where a model had invented one."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.files import BenchmarkFiles
from corrigenda.benchmarks.knowedit.records import KnowEditFact, KnowEditFacts, KnowEditItem


class _WikiBioRecord(TypedDict):
    text: str
    labels: str
    concept: str
    locality: dict[str, list[KnowEditItem]]


_SCHEMA = TypeAdapter(_WikiBioRecord)


class KnowEditWikiBio(KnowEditFacts):
    """Modification of a hallucination: a passage, then one true sentence."""

    name: ClassVar[str] = "knowedit-wikibio"
    expects: ClassVar[tuple[str, ...]] = ("locality",)
    headline: ClassVar[tuple[str, ...]] = (
        "reliability@teacher_forced",
        "locality@teacher_forced",
        "fluency@greedy",
    )
    edit: ClassVar[str] = "modification"
    part: Literal["test", "train"] = "test"

    def read_facts(self, files: BenchmarkFiles) -> list[KnowEditFact]:
        """Read the records."""
        return [
            KnowEditFact(
                subject=record["concept"],
                prompt=record["text"],
                target=record["labels"],
                before=(),
                rephrase=None,
                portability={},
                locality=record["locality"],
            )
            for record in files.read_records(files.find_main(), _SCHEMA)
        ]
