"""What the files of ConflictEdit and RoundEdit have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.benchmark import Unusable
from corrigenda.benchmarks.counterfact.records import one_slot
from corrigenda.benchmarks.files import Files, fit
from corrigenda.facts import Fact


class Named(TypedDict):
    """An entity."""

    id: str
    label: str


class Relation(TypedDict):
    """A relation with the prompt it is edited with."""

    id: str
    prompt: Annotated[str, AfterValidator(one_slot)]


class Triple(TypedDict):
    """A fact."""

    relation: Relation
    subject: Named
    object: Named


class Edit(Triple):
    """A fact that gets another object."""

    new_object: Named


_PROMPTS = TypeAdapter(dict[str, list[str]])


def paraphrases(files: Files, name: str) -> dict[str, list[str]]:
    """Templates by relation, from the file that goes with the records."""
    path = files.required(name)
    (table,) = fit([files.document(path)], _PROMPTS, where=str(path))
    return table


def templates(relation: Relation, table: dict[str, list[str]]) -> tuple[str, ...]:
    """The prompt that is edited, then the paraphrases, which weigh the same."""
    found = table.get(relation["id"])
    if found is None:
        raise Unusable(f"no paraphrases of relation {relation['id']}")
    return (relation["prompt"], *found)


def fact_of(relation: Relation, subject: str, old: str, new: str, name: str) -> Fact:
    """The edit of a fact; the subject stands where the prompt says."""
    if not (subject.strip() and old.strip()):
        raise Unusable("an entity has no name")
    return Fact(
        prompt=relation["prompt"].replace("{}", subject).rstrip(),
        target=new.strip(),
        subject=subject,
        subject_start=relation["prompt"].index("{}"),
        before=old.strip(),
        name=name,
    )
