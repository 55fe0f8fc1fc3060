"""What the files of ConflictEdit and RoundEdit have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.benchmark import UnusableRecord
from corrigenda.benchmarks.counterfact.records import check_one_slot
from corrigenda.benchmarks.files import BenchmarkFiles, validate_records
from corrigenda.facts import Fact


class EntityRecord(TypedDict):
    """An entity."""

    id: str
    label: str


class RelationRecord(TypedDict):
    """A relation with the prompt it is edited with."""

    id: str
    prompt: Annotated[str, AfterValidator(check_one_slot)]


class TripleRecord(TypedDict):
    """A fact."""

    relation: RelationRecord
    subject: EntityRecord
    object: EntityRecord


class EditRecord(TripleRecord):
    """A fact that gets another object."""

    new_object: EntityRecord


_PROMPTS = TypeAdapter(dict[str, list[str]])


def read_paraphrases(files: BenchmarkFiles, name: str) -> dict[str, list[str]]:
    """Templates by relation, from the file that goes with the records."""
    path = files.require_extra(name)
    (table,) = validate_records([files.read_document(path)], _PROMPTS, where=str(path))
    return table


def list_templates(relation: RelationRecord, table: dict[str, list[str]]) -> tuple[str, ...]:
    """The prompt that is edited, then the paraphrases, which weigh the same."""
    found = table.get(relation["id"])
    if found is None:
        raise UnusableRecord(f"no paraphrases of relation {relation['id']}")
    return (relation["prompt"], *found)


def make_fact(relation: RelationRecord, subject: str, old: str, new: str, name: str) -> Fact:
    """The edit of a fact; the subject stands where the prompt says."""
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
