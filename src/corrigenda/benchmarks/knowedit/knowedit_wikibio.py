"""KnowEdit WikiBio: the next sentence of a biography, where a model had invented one."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.files import Files
from corrigenda.benchmarks.knowedit.records import Item, KnowEditFacts, Parts


class _Record(TypedDict):
    text: str
    labels: str
    concept: str
    locality: dict[str, list[Item]]


_SCHEMA = TypeAdapter(_Record)


class KnowEditWikiBio(KnowEditFacts):
    """Modification of a hallucination: a passage, then one true sentence."""

    name: ClassVar[str] = "knowedit-wikibio"
    edit: ClassVar[str] = "modification"
    part: Literal["test", "train"] = "test"

    def parts(self, files: Files) -> list[Parts]:
        """Read the records."""
        return [
            Parts(
                subject=record["concept"],
                prompt=record["text"],
                target=record["labels"],
                before=(),
                rephrase=None,
                portability={},
                locality=record["locality"],
            )
            for record in files.records(files.main(), _SCHEMA)
        ]
