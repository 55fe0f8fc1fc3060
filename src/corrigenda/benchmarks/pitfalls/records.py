"""Schemas and prompts that ConflictEdit and RoundEdit share."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.benchmark import UnusableRecord
from corrigenda.benchmarks.counterfact.records import check_one_slot
from corrigenda.benchmarks.files import BenchmarkFiles, validate_records
from corrigenda.facts import Fact


class EntityRecord(TypedDict):
    """Entity with its Wikidata id and name."""

    id: str
    label: str


class RelationRecord(TypedDict):
    """Relation with the prompt it is edited with."""

    id: str
    prompt: Annotated[str, AfterValidator(check_one_slot)]


class TripleRecord(TypedDict):
    """Fact of the knowledge graph."""

    relation: RelationRecord
    subject: EntityRecord
    object: EntityRecord


class EditRecord(TripleRecord):
    """Fact that gets another object."""

    new_object: EntityRecord


_PROMPTS = TypeAdapter(dict[str, list[str]])


def read_paraphrases(files: BenchmarkFiles, name: str) -> dict[str, list[str]]:
    """Read the templates of each relation from the file that accompanies the records."""
    path = files.require_extra(name)
    (table,) = validate_records([files.read_document(path)], _PROMPTS, where=str(path))
    return table


def list_templates(relation: RelationRecord, table: dict[str, list[str]]) -> tuple[str, ...]:
    """Return the prompt that is edited, then its paraphrases, which weigh the same."""
    found = table.get(relation["id"])
    if found is None:
        raise UnusableRecord(f"no paraphrases of relation {relation['id']}")
    return (relation["prompt"], *found)


def make_fact(relation: RelationRecord, subject: str, old: str, new: str, name: str) -> Fact:
    """Make the fact of an edit; the prompt tells where the subject is."""
    if not (subject.strip() and old.strip()):
        raise UnusableRecord("an entity has no name")
    return Fact(
        prompt=relation["prompt"].replace("{}", subject).rstrip(),
        target=new.strip(),
        subject=subject,
        subject_start=relation["prompt"].index("{}"),
        before=old.strip(),
        name=name,
    )
