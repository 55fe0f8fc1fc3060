"""RippleEdits: consequences of an edit and facts it should not change, in six criteria."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import AliasChoices, Field, TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.aliases import (
    Groups,
    drop_repeats,
    exclude_names,
    is_same_name,
    merge_groups,
)
from corrigenda.benchmarks.benchmark import Benchmark, Tally, UnusableRecord, make_cases
from corrigenda.benchmarks.files import BenchmarkFiles
from corrigenda.benchmarks.labels import EntityLabels, split_statement
from corrigenda.cases import Case, Probe, Protocol
from corrigenda.facts import Fact

NEW_TOKENS = 20
SHORTEST_ALIAS = 3

ROLES: Mapping[str, str] = {
    "Logical_Generalization": "portability/logical_generalization",
    "Compositionality_I": "portability/compositionality_1",
    "Compositionality_II": "portability/compositionality_2",
    "Subject_Aliasing": "portability/subject_aliasing",
    "Relation_Specificity": "locality/relation_specificity",
    "Forgetfulness": "locality/forgetfulness",
}


class _AnswerRecord(TypedDict):
    value: str
    aliases: list[str]


class _QueryRecord(TypedDict):
    prompt: str
    answers: list[_AnswerRecord]
    query_type: str
    subject_id: str | list[str]
    relation: str
    target_ids: list[str]


class _RippleTest(TypedDict):
    test_queries: list[_QueryRecord]
    test_condition: str
    condition_queries: list[_QueryRecord]


class _StatementRecord(TypedDict):
    prompt: str
    subject_id: str
    relation: str
    target_id: str


class _EditRecord(_StatementRecord, total=False):
    original_fact: _StatementRecord | None
    subject_label: Annotated[str, Field(validation_alias=AliasChoices("subject_label", "subject"))]
    target_label: Annotated[str, Field(validation_alias=AliasChoices("target_label", "target"))]


class _CriteriaRecord(TypedDict, total=False):
    Logical_Generalization: list[_RippleTest]
    Compositionality_I: list[_RippleTest]
    Compositionality_II: list[_RippleTest]
    Subject_Aliasing: list[_RippleTest]
    Relation_Specificity: list[_RippleTest]
    Relation_Specifity: list[_RippleTest]
    Forgetfulness: list[_RippleTest]


class _RippleRecord(_CriteriaRecord):
    example_type: str
    edit: _EditRecord


class _ParsedEdit(NamedTuple):
    fact: Fact
    old: tuple[str, ...]


_SCHEMA = TypeAdapter(_RippleRecord)


class RippleEdits(Benchmark):
    """One edit a record, with tests that run only if their conditions hold before the edit.

    Attributes:
        part: "popular", "random" or "recent".
        multiple: Of several true objects, "any" one will do, or "all" must be named, as the
            released code demands.
        alias_condition: A test of an alias needs the unedited model to know the "original" answer
            by that alias; "released" needs the new one, as the released code has it, which selects
            tests that hold already.
    """

    name: ClassVar[str] = "rippleedits"
    kinds: ClassVar[tuple[str, ...]] = ("example_type",)
    expects: ClassVar[tuple[str, ...]] = ("portability", "locality")
    headline: ClassVar[tuple[str, ...]] = (
        "logical_generalization@greedy:contains",
        "compositionality_1@greedy:contains",
        "compositionality_2@greedy:contains",
        "subject_aliasing@greedy:contains",
        "preservation@greedy:contains",
        "relation_specificity@greedy:contains",
    )
    part: Literal["popular", "random", "recent"] = "popular"
    multiple: Literal["any", "all"] = "any"
    alias_condition: Literal["original", "released"] = "original"

    def read(self, files: BenchmarkFiles, tally: Tally) -> Iterator[Case]:
        """Yield one case a record."""
        records = files.read_records(files.find_main(), _SCHEMA)
        labels = EntityLabels(_collect_labels(records))

        def make(index: int, record: _RippleRecord) -> tuple[Case]:
            return (self._make_case(index, record, labels, tally),)

        yield from make_cases(records, make, tally)

    def _make_case(
        self, index: int, record: _RippleRecord, labels: EntityLabels, tally: Tally
    ) -> Case:
        edit = record["edit"]
        parsed = _parse_edit(record, labels, f"record {index}")
        fact = parsed.fact
        probes = [
            Probe(
                prompt=fact.prompt,
                expected=((fact.target, *fact.aliases),),
                role="reliability",
                protocol=Protocol.GREEDY,
                rivals=parsed.old,
                max_new_tokens=NEW_TOKENS,
            )
        ]
        for criterion, role in ROLES.items():
            for number, test in enumerate(_read_tests(record, criterion)):
                reason = _find_skip_reason(criterion, test, edit)
                asked = (
                    ()
                    if reason
                    else self._make_test_probes(test, criterion, f"{role} {number}", parsed)
                )
                if not asked:
                    tally.skipped[f"{role}: {reason or 'no answer but the one excluded'}"] += 1
                probes += asked
        return Case(
            id=str(index),
            facts=(fact,),
            probes=tuple(probes),
            meta={
                "edit": "insertion" if record["example_type"] == "recent" else "modification",
                "relation": edit["relation"],
                "example_type": record["example_type"],
            },
        )

    def _make_test_probes(
        self, test: _RippleTest, criterion: str, name: str, parsed: _ParsedEdit
    ) -> tuple[Probe, ...]:
        role = name.rpartition(" ")[0]
        asked = [
            self._make_probe(
                query, role, name, parsed.fact.target if criterion == "Forgetfulness" else None
            )
            for query in test["test_queries"]
        ]
        kept = [
            dataclasses.replace(probe, every=test["test_condition"].upper() == "AND")
            for probe in asked
            if probe.expected
        ]
        conditions = [
            self._make_probe(query, "condition", name, None) for query in test["condition_queries"]
        ]
        if criterion == "Subject_Aliasing" and self.alias_condition == "original" and parsed.old:
            conditions = [
                dataclasses.replace(probe, expected=(parsed.old,)) for probe in conditions
            ]
        if not kept or not all(probe.expected for probe in conditions):
            return ()
        return (*kept, *(dataclasses.replace(probe, after=(0,)) for probe in conditions))

    def _make_probe(self, query: _QueryRecord, role: str, test: str, excluded: str | None) -> Probe:
        spelt = (_collect_spellings(answer) for answer in query["answers"])
        groups: Groups = tuple(group for group in spelt if group)
        if excluded is not None:
            groups = exclude_names(groups, [excluded])
        return Probe(
            prompt=query["prompt"].strip(),
            expected=groups if self.multiple == "all" else merge_groups(groups),
            role=role,
            protocol=Protocol.GREEDY,
            test=test,
            max_new_tokens=NEW_TOKENS,
        )


def _read_tests(record: _RippleRecord, criterion: str) -> Sequence[_RippleTest]:
    if criterion == "Relation_Specificity":
        # One of the public files has the other spelling.
        return record.get("Relation_Specificity") or record.get("Relation_Specifity") or []
    found: Mapping[str, object] = record
    tests = found.get(criterion) or []
    return tests  # type: ignore[return-value]  # the key is one of `_CriteriaRecord`


def _find_skip_reason(criterion: str, test: _RippleTest, edit: _EditRecord) -> str:
    """Return why a test is not asked; empty if it is asked."""
    queries = test["test_queries"]
    if not any(query["answers"] for query in queries):
        return "no answer"
    if any(not query["answers"] for query in test["condition_queries"]):
        return "a condition has no answer"
    # The rule for spouses was written with the relation of siblings.
    wrong = edit["relation"] == "SPOUSE" and any(
        query["relation"] == "SIBLING" for query in queries
    )
    if criterion == "Logical_Generalization" and wrong:
        return "asks for a sibling where a spouse was edited"
    return ""


def _collect_spellings(answer: _AnswerRecord) -> tuple[str, ...]:
    """Return the value, and aliases too long to occur in other words by chance."""
    long = (one for one in answer["aliases"] if len(one.strip()) >= SHORTEST_ALIAS)
    return drop_repeats(one.strip() for one in (answer["value"], *long))


def _iterate_queries(record: _RippleRecord) -> Iterator[_QueryRecord]:
    for criterion in ROLES:
        for test in _read_tests(record, criterion):
            yield from test["test_queries"]
            yield from test["condition_queries"]


def _collect_labels(records: Iterable[_RippleRecord]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield ids with the spellings that answers give them."""
    for record in records:
        for query in _iterate_queries(record):
            two_hop = query["query_type"] == "two_hop"
            if not two_hop and len(query["target_ids"]) == len(query["answers"]):
                for target, answer in zip(query["target_ids"], query["answers"], strict=True):
                    yield target, _collect_spellings(answer)


def _parse_edit(record: _RippleRecord, labels: EntityLabels, name: str) -> _ParsedEdit:
    edit = record["edit"]
    original = edit.get("original_fact")
    given = edit.get("target_label", "").strip()
    spelt = (given,) if given else labels.get(edit["target_id"])
    split = split_statement(
        edit["prompt"],
        spelt,
        original["prompt"] if original else None,
        labels.get(original["target_id"]) if original else (),
    )
    if split is None:
        raise UnusableRecord("the target is not certain from the statement")
    prompt, target = split
    old: tuple[str, ...] = ()
    if original:
        before = original["prompt"].strip().removesuffix(".").removeprefix(prompt).strip()
        known = labels.get(original["target_id"])
        stated = original["prompt"].startswith(prompt) and bool(before)
        old = drop_repeats((before, *known) if stated else known)
    subject = edit.get("subject_label", "").strip() or labels.infer_subject(
        prompt,
        edit["subject_id"],
        [
            query["prompt"]
            for test in _read_tests(record, "Relation_Specificity")
            for query in test["test_queries"]
            if query["subject_id"] == edit["subject_id"]
        ],
    )
    if not subject:
        raise UnusableRecord("the subject is not certain from the statement")
    fact = Fact(
        prompt=prompt,
        target=target,
        subject=subject,
        before=old[0] if old else None,
        aliases=tuple(one for one in spelt if one != target),
        name=name,
    )
    return _ParsedEdit(fact, tuple(one for one in old if not is_same_name(one, target)))
