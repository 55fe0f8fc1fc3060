"""MQuAKE: questions of several hops, some of whose facts are edited."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.aliases import Groups, distinct, same
from corrigenda.benchmarks.benchmark import Benchmark, Tally, Unusable, each
from corrigenda.benchmarks.counterfact.records import Rewrite, in_conflict
from corrigenda.benchmarks.files import Files, fit
from corrigenda.cases import Case, Probe, Protocol
from corrigenda.facts import Fact

NEW_TOKENS = 20
THOUGHT_TOKENS = 200

CONFLICT = "another case writes another target for a subject and relation edited here"
UNCHANGED = "the final answer stays the same"


class _Hop(TypedDict):
    question: str
    cloze: str
    answer: str
    answer_alias: list[str]


class _Origin(TypedDict):
    new_triples: list[list[str]]
    edit_triples: list[list[str]]


class _Optional(TypedDict, total=False):
    answer_extended: list[str]


class _Record(_Optional):
    case_id: int
    requested_rewrite: list[Rewrite]
    questions: list[str]
    answer: str
    answer_alias: list[str]
    new_answer: str
    new_answer_alias: list[str]
    single_hops: list[_Hop]
    new_single_hops: list[_Hop]
    orig: _Origin


class _Demonstrations(NamedTuple):
    by_relation: Mapping[str, str]
    questions: str
    thoughts: str


_SCHEMA = TypeAdapter(_Record)
_BY_RELATION = TypeAdapter(dict[str, str])


class MQuAKE(Benchmark):
    """Facts edited together, then asked one by one, as a chain, and in one question.

    Attributes:
        part: "cf-3k-v2" (conflicts within v1 mended), "cf-3k", "cf", "t" or "hard".
    """

    name: ClassVar[str] = "mquake"
    part: Literal["cf-3k-v2", "cf-3k", "cf", "t", "hard"] = "cf-3k-v2"

    def read(self, files: Files, tally: Tally) -> Iterator[Case]:
        """Yield one case a record."""
        records = files.records(files.main(), _SCHEMA)
        shown = _demonstrations(files)
        conflicts = in_conflict(
            (one["subject"], one["relation_id"], one["target_new"]["str"])
            for record in records
            for one in record["requested_rewrite"]
        )

        def make(_: int, record: _Record) -> tuple[Case]:
            edited = {(one["subject"], one["relation_id"]) for one in record["requested_rewrite"]}
            return (_case(record, shown, bool(edited & conflicts)),)

        yield from each(records, make, tally)


def _demonstrations(files: Files) -> _Demonstrations:
    relations = files.extra("rel-prompts.json")
    blocks = [
        files.text(path).strip() if (path := files.extra(name)) else ""
        for name in ("multihop-prompts.txt", "multihop-cot-prompts.txt")
    ]
    by_relation: dict[str, str] = {}
    if relations is not None:
        raw = files.document(relations)
        (by_relation,) = fit([raw], _BY_RELATION, where=str(relations))
    return _Demonstrations(by_relation, *blocks)


def _case(record: _Record, shown: _Demonstrations, conflict: bool) -> Case:
    hops, triples = record["new_single_hops"], record["orig"]["new_triples"]
    if not record["requested_rewrite"]:
        raise Unusable("there is nothing to edit")
    if len(hops) != len(triples):
        raise Unusable("hops and triples differ in number")
    if not (record["new_answer"].strip() and any(text.strip() for text in record["questions"])):
        raise Unusable("there is no question, or no new answer")
    facts = tuple(
        _fact(rewrite, hops, f"case {record['case_id']}, edit {index}")
        for index, rewrite in enumerate(record["requested_rewrite"])
    )
    edits = {tuple(triple[:2]) for triple in record["orig"]["edit_triples"]}
    edited_hops = tuple(
        index for index, triple in enumerate(triples, start=1) if tuple(triple[:2]) in edits
    )
    old = distinct((record["answer"], *record["answer_alias"], *record.get("answer_extended", ())))
    new = distinct((record["new_answer"], *record["new_answer_alias"]))
    stale = tuple(one for one in old if not any(same(one, other) for other in new))
    probes = [
        *(_edit(fact, index) for index, fact in enumerate(facts)),
        *_chain(hops, triples, edits, shown.by_relation),
        *_asked(record["questions"], shown, (new,), "portability/multi_hop", rivals=stale),
        *_chain(record["single_hops"], (), edits, {}, role="before/chain", after=(0,)),
        *_asked(record["questions"], shown, (old,), "before/multi_hop", after=(0,)),
    ]
    flags = [CONFLICT] if conflict else []
    if same(record["answer"], record["new_answer"]):
        flags.append(UNCHANGED)
    return Case(
        id=str(record["case_id"]),
        facts=facts,
        probes=tuple(probes),
        meta={
            "edit": "modification",
            "hops": len(hops),
            "edits": len(facts),
            "edited_hops": edited_hops,
            "flags": tuple(flags),
        },
    )


def _fact(rewrite: Rewrite, hops: Sequence[_Hop], name: str) -> Fact:
    target = rewrite["target_new"]["str"].strip()
    hop = next((one for one in hops if same(one["answer"], target)), None)
    aliases = distinct(hop["answer_alias"]) if hop else ()
    return Fact(
        prompt=rewrite["prompt"].replace("{}", rewrite["subject"]).rstrip(),
        target=target,
        subject=rewrite["subject"],
        subject_start=rewrite["prompt"].index("{}"),
        before=rewrite["target_true"]["str"].strip() or None,
        aliases=tuple(one for one in aliases if one != target),
        name=name,
    )


def _edit(fact: Fact, index: int) -> Probe:
    return Probe(
        prompt=fact.prompt,
        expected=((fact.target, *fact.aliases),),
        role="reliability",
        protocol=Protocol.GREEDY,
        rivals=(fact.before,) if fact.before else (),
        test=f"edit {index}",
        max_new_tokens=NEW_TOKENS,
    )


def _chain(
    hops: Sequence[_Hop],
    triples: Sequence[Sequence[str]],
    edits: set[tuple[str, ...]],
    by_relation: Mapping[str, str],
    *,
    role: str = "portability/chain",
    after: tuple[int, ...] = (),
) -> Iterator[Probe]:
    """Every fact on a chain: edited ones by their cloze, others behind examples of the relation."""
    for index, hop in enumerate(hops):
        triple = triples[index] if triples else ()
        block = by_relation.get(triple[1], "") if len(triple) > 1 else ""
        prompt = hop["cloze"]
        if tuple(triple[:2]) not in edits and block:
            prompt = f"{block}\nQ: {hop['question']} A:"
        yield Probe(
            prompt=prompt.rstrip(),
            expected=(distinct((hop["answer"], *hop["answer_alias"])),),
            role=role,
            protocol=Protocol.GREEDY,
            test="chain",
            after=after,
            max_new_tokens=NEW_TOKENS,
        )


def _asked(
    questions: Sequence[str],
    shown: _Demonstrations,
    expected: Groups,
    role: str,
    *,
    rivals: tuple[str, ...] = (),
    after: tuple[int, ...] = (),
) -> Iterator[Probe]:
    """The phrasings of one question, of which any may be answered: bare, or behind examples."""
    for question in distinct(questions):
        opening = f"{shown.questions}\n" if shown.questions else ""
        yield Probe(
            prompt=f"{opening}Q: {question} A:",
            expected=expected,
            role=role,
            protocol=Protocol.GREEDY,
            rivals=rivals,
            test="question",
            every=False,
            after=after,
            max_new_tokens=NEW_TOKENS,
        )
        if shown.thoughts:
            yield Probe(
                prompt=f"{shown.thoughts}\n\nQuestion: {question}\nThoughts:",
                expected=expected,
                role=f"{role}_thoughts",
                protocol=Protocol.GREEDY,
                rivals=rivals,
                test="question",
                every=False,
                after=after,
                max_new_tokens=THOUGHT_TOKENS,
                marker="Answer:",
            )
