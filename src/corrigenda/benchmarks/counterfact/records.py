"""The official schema of CounterFact, shared with CounterFact+."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import AfterValidator, TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.aliases import is_same_name
from corrigenda.benchmarks.benchmark import UnusableRecord
from corrigenda.facts import Fact


def check_one_slot(template: str) -> str:
    """Check that a template has one place for the subject."""
    if template.count("{}") != 1:
        raise ValueError("expected one {} for the subject")
    return template


class TargetRecord(TypedDict):
    """Object with its Wikidata id."""

    str: str
    id: str


class RewriteRecord(TypedDict):
    """Edit of a record."""

    prompt: Annotated[str, AfterValidator(check_one_slot)]
    relation_id: str
    target_new: TargetRecord
    target_true: TargetRecord
    subject: str


class CounterFactRecord(TypedDict):
    """Record of `counterfact.json`."""

    case_id: int
    requested_rewrite: RewriteRecord
    paraphrase_prompts: list[str]
    neighborhood_prompts: list[str]
    attribute_prompts: list[str]
    generation_prompts: list[str]


SCHEMA = TypeAdapter(CounterFactRecord)


def make_fact(record: CounterFactRecord) -> Fact:
    """Make the fact of a record; the template tells where the subject is."""
    rewrite = record["requested_rewrite"]
    if not rewrite["subject"].strip():
        raise UnusableRecord("the subject is empty")
    return Fact(
        prompt=rewrite["prompt"].replace("{}", rewrite["subject"]).rstrip(),
        target=rewrite["target_new"]["str"].strip(),
        subject=rewrite["subject"],
        subject_start=rewrite["prompt"].index("{}"),
        before=rewrite["target_true"]["str"].strip(),
        name=f"case {record['case_id']}",
    )


def make_meta(record: CounterFactRecord, flags: Sequence[str] = ()) -> dict[str, object]:
    """Return the fields that reports group by."""
    rewrite = record["requested_rewrite"]
    return {
        "edit": "modification",
        "relation": rewrite["relation_id"],
        "target_new_id": rewrite["target_new"]["id"],
        "target_true_id": rewrite["target_true"]["id"],
        "flags": tuple(flags),
    }


def find_conflicts(edits: Iterable[tuple[str, str, str]]) -> frozenset[tuple[str, str]]:
    """Return subject and relation of edits (subject, relation, target) with several targets."""
    targets: dict[tuple[str, str], list[str]] = defaultdict(list)
    for subject, relation, target in edits:
        known = targets[subject, relation]
        if not any(is_same_name(target, one) for one in known):
            known.append(target)
    return frozenset(key for key, values in targets.items() if len(values) > 1)
