"""TAXI: a thing is put into another category, and the properties of that category should follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.aliases import drop_repeats
from corrigenda.benchmarks.benchmark import Benchmark, Tally, UnusableRecord
from corrigenda.benchmarks.files import BenchmarkFiles
from corrigenda.cases import Against, Case, Probe, Protocol
from corrigenda.errors import AmbiguousSubject, EmptyTarget, SubjectNotFound
from corrigenda.facts import Fact

_MEMBERSHIP = "category_membership"
_SUBJECT, _ANSWER = "<subj>", "<answer>"


class _TaxiRecord(TypedDict):
    entity: str
    orig_entity: str
    token_type: str
    edit: str
    subj: str
    property: str
    query_fwd: str
    query_rev: str
    answer_changed: bool
    fwd_choices: list[str]
    rev_choices: list[str]
    answer_fwd: str
    answer_rev: str
    superordinate_category: str


_SCHEMA = TypeAdapter(_TaxiRecord)


class Taxi(Benchmark):
    """Category membership edits with multiple-choice questions about properties.

    Attributes:
        reverse: Whether the questions are asked from the property to the thing as well.
    """

    name: ClassVar[str] = "taxi"
    kinds: ClassVar[tuple[str, ...]] = ("supercategory", "token_type")
    expects: ClassVar[tuple[str, ...]] = ("reliability", "property")
    headline: ClassVar[tuple[str, ...]] = (
        "taxi_success@rank",
        "taxi_consistency@rank",
        "taxi_invariance@rank",
        "taxi_score@rank",
        "taxi_chance@rank",
    )
    reverse: bool = True

    def read(self, files: BenchmarkFiles, tally: Tally) -> Iterator[Case]:
        """Yield one case an edit; the records are the questions."""
        edits: dict[str, list[_TaxiRecord]] = {}
        for record in files.read_records(files.find_main(), _SCHEMA):
            tally.records += 1
            edits.setdefault(record["edit"], []).append(record)
        for name, records in edits.items():
            try:
                yield self._make_case(name, records, tally)
            except UnusableRecord as error:
                tally.dropped[str(error)] += len(records)
            except (SubjectNotFound, AmbiguousSubject, EmptyTarget):
                tally.dropped["the subject or the category is empty"] += len(records)

    def _make_case(self, name: str, records: Sequence[_TaxiRecord], tally: Tally) -> Case:
        first = records[0]
        subject, category = first["subj"].strip(), first["entity"].strip()
        if not (subject and category):
            raise UnusableRecord("the subject or the category is empty")
        prompt = f"A {subject} is a kind of"
        fact = Fact(
            prompt=prompt,
            target=category,
            subject=subject,
            subject_start=2,
            before=first["orig_entity"].strip() or None,
            name=name,
        )
        probes: list[Probe] = []
        for record in records:
            role = "reliability"
            if record["property"] != _MEMBERSHIP:
                role = "property/changed" if record["answer_changed"] else "property/unchanged"
            probes += _make_choice(
                record["query_fwd"].replace(_SUBJECT, subject),
                _ANSWER,
                record["answer_fwd"],
                record["fwd_choices"],
                role,
                tally,
            )
            if self.reverse:
                is_membership = role == "reliability"
                probes += _make_choice(
                    record["query_rev"].replace(_ANSWER, record["answer_fwd"]),
                    _SUBJECT,
                    record["answer_rev"].replace(_SUBJECT, subject),
                    record["rev_choices"],
                    "reverse/membership" if is_membership else "reverse/property",
                    tally,
                )
        if not probes:
            raise UnusableRecord("no question has its answer among the choices")
        return Case(
            id=name,
            facts=(fact,),
            probes=tuple(probes),
            meta={
                "edit": "modification",
                "supercategory": first["superordinate_category"],
                "token_type": first["token_type"],
            },
        )


def _make_choice(
    template: str, slot: str, right: str, choices: Sequence[str], role: str, tally: Tally
) -> Iterator[Probe]:
    """Yield the probe that compares the choices in the place of a slot.

    Where text follows the slot, it belongs to every choice: the whole rest is compared.
    """
    before, found, after = template.partition(slot)
    rivals = tuple(one for one in drop_repeats(choices) if one != right)
    if not found or right not in choices or not rivals:
        tally.skipped[f"{role}: the answer is not among the choices"] += 1
        return
    lead = before.rstrip()
    if not lead:
        # Nothing is read before the choices, so they are compared as beginnings.
        tally.skipped[f"{role}: the question begins with its answer"] += 1
        return
    yield Probe(
        prompt=lead,
        expected=((f"{right}{after}".strip(),),),
        role=role,
        protocol=Protocol.RANK,
        against=Against.BEFORE,
        rivals=tuple(f"{one}{after}".strip() for one in rivals),
    )
