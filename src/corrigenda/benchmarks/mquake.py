"""MQuAKE: questions of several hops, some of whose facts are edited."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.aliases import Groups, drop_repeats, is_same_name
from corrigenda.benchmarks.benchmark import Benchmark, Tally, UnusableRecord, make_cases
from corrigenda.benchmarks.counterfact.records import RewriteRecord, find_conflicts
from corrigenda.benchmarks.files import BenchmarkFiles, validate_records
from corrigenda.cases import Case, Probe, Protocol
from corrigenda.facts import Fact

NEW_TOKENS = 20
THOUGHT_TOKENS = 200

CONFLICT = "another case writes another target for a subject and relation edited here"
UNCHANGED = "the final answer stays the same"


class _HopRecord(TypedDict):
    question: str
    cloze: str
    answer: str
    answer_alias: list[str]


class _TriplesRecord(TypedDict):
    new_triples: list[list[str]]
    edit_triples: list[list[str]]


class _MQuAKEOptional(TypedDict, total=False):
    answer_extended: list[str]


class _MQuAKERecord(_MQuAKEOptional):
    case_id: int
    requested_rewrite: list[RewriteRecord]
    questions: list[str]
    answer: str
    answer_alias: list[str]
    new_answer: str
    new_answer_alias: list[str]
    single_hops: list[_HopRecord]
    new_single_hops: list[_HopRecord]
    orig: _TriplesRecord


class _Demonstrations(NamedTuple):
    by_relation: Mapping[str, str]
    questions: str
    thoughts: str


_SCHEMA = TypeAdapter(_MQuAKERecord)
_BY_RELATION = TypeAdapter(dict[str, str])


class MQuAKE(Benchmark):
    """Facts edited together, then asked one by one, as a chain, and in one question.

    Attributes:
        part: "cf-3k-v2" (conflicts within v1 mended), "cf-3k", "cf", "t" or "hard".
    """

    name: ClassVar[str] = "mquake"
    kinds: ClassVar[tuple[str, ...]] = ("hops",)
    expects: ClassVar[tuple[str, ...]] = ("portability",)
    headline: ClassVar[tuple[str, ...]] = (
        "edit_wise@greedy",
        "instance_wise@greedy",
        "multi_hop@greedy:any",
    )
    part: Literal["cf-3k-v2", "cf-3k", "cf", "t", "hard"] = "cf-3k-v2"

    def read(self, files: BenchmarkFiles, tally: Tally) -> Iterator[Case]:
        """Yield one case a record."""
        records = files.read_records(files.find_main(), _SCHEMA)
        shown = _read_demonstrations(files)
        conflicts = find_conflicts(
            (one["subject"], one["relation_id"], one["target_new"]["str"])
            for record in records
            for one in record["requested_rewrite"]
        )

        def make(_: int, record: _MQuAKERecord) -> tuple[Case]:
            edited = {(one["subject"], one["relation_id"]) for one in record["requested_rewrite"]}
            return (_make_case(record, shown, bool(edited & conflicts)),)

        yield from make_cases(records, make, tally)


def _read_demonstrations(files: BenchmarkFiles) -> _Demonstrations:
    relations = files.find_extra("rel-prompts.json")
    blocks = [
        files.read_text(path).strip() if (path := files.find_extra(name)) else ""
        for name in ("multihop-prompts.txt", "multihop-cot-prompts.txt")
    ]
    by_relation: dict[str, str] = {}
    if relations is not None:
        raw = files.read_document(relations)
        (by_relation,) = validate_records([raw], _BY_RELATION, where=str(relations))
    return _Demonstrations(by_relation, *blocks)


def _make_case(record: _MQuAKERecord, shown: _Demonstrations, conflict: bool) -> Case:
    hops, triples = record["new_single_hops"], record["orig"]["new_triples"]
    if not record["requested_rewrite"]:
        raise UnusableRecord("there is nothing to edit")
    if len(hops) != len(triples):
        raise UnusableRecord("hops and triples differ in number")
    if not (record["new_answer"].strip() and any(text.strip() for text in record["questions"])):
        raise UnusableRecord("there is no question, or no new answer")
    facts = tuple(
        _make_fact(rewrite, hops, f"case {record['case_id']}, edit {index}")
        for index, rewrite in enumerate(record["requested_rewrite"])
    )
    edits = {tuple(triple[:2]) for triple in record["orig"]["edit_triples"]}
    edited_hops = tuple(
        index for index, triple in enumerate(triples, start=1) if tuple(triple[:2]) in edits
    )
    old = drop_repeats(
        (record["answer"], *record["answer_alias"], *record.get("answer_extended", ()))
    )
    new = drop_repeats((record["new_answer"], *record["new_answer_alias"]))
    stale = tuple(one for one in old if not any(is_same_name(one, other) for other in new))
    probes = [
        *(_make_edit_probe(fact, index) for index, fact in enumerate(facts)),
        *_make_chain_probes(hops, triples, edits, shown.by_relation),
        *_make_question_probes(
            record["questions"], shown, (new,), "portability/multi_hop", rivals=stale
        ),
        *_make_chain_probes(record["single_hops"], (), edits, {}, role="before/chain", after=(0,)),
        *_make_question_probes(record["questions"], shown, (old,), "before/multi_hop", after=(0,)),
    ]
    flags = [CONFLICT] if conflict else []
    if is_same_name(record["answer"], record["new_answer"]):
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


def _make_fact(rewrite: RewriteRecord, hops: Sequence[_HopRecord], name: str) -> Fact:
    target = rewrite["target_new"]["str"].strip()
    hop = next((one for one in hops if is_same_name(one["answer"], target)), None)
    aliases = drop_repeats(hop["answer_alias"]) if hop else ()
    return Fact(
        prompt=rewrite["prompt"].replace("{}", rewrite["subject"]).rstrip(),
        target=target,
        subject=rewrite["subject"],
        subject_start=rewrite["prompt"].index("{}"),
        before=rewrite["target_true"]["str"].strip() or None,
        aliases=tuple(one for one in aliases if one != target),
        name=name,
    )


def _make_edit_probe(fact: Fact, index: int) -> Probe:
    return Probe(
        prompt=fact.prompt,
        expected=((fact.target, *fact.aliases),),
        role="reliability",
        protocol=Protocol.GREEDY,
        rivals=(fact.before,) if fact.before else (),
        test=f"edit {index}",
        max_new_tokens=NEW_TOKENS,
    )


def _make_chain_probes(
    hops: Sequence[_HopRecord],
    triples: Sequence[Sequence[str]],
    edits: set[tuple[str, ...]],
    by_relation: Mapping[str, str],
    *,
    role: str = "portability/chain",
    after: tuple[int, ...] = (),
) -> Iterator[Probe]:
    """Ask every fact of a chain: edited ones by their cloze, others after few-shot examples."""
    for index, hop in enumerate(hops):
        triple = triples[index] if triples else ()
        block = by_relation.get(triple[1], "") if len(triple) > 1 else ""
        prompt = hop["cloze"]
        if tuple(triple[:2]) not in edits and block:
            prompt = f"{block}\nQ: {hop['question']} A:"
        yield Probe(
            prompt=prompt.rstrip(),
            expected=(drop_repeats((hop["answer"], *hop["answer_alias"])),),
            role=role,
            protocol=Protocol.GREEDY,
            test="chain",
            after=after,
            max_new_tokens=NEW_TOKENS,
        )


def _make_question_probes(
    questions: Sequence[str],
    shown: _Demonstrations,
    expected: Groups,
    role: str,
    *,
    rivals: tuple[str, ...] = (),
    after: tuple[int, ...] = (),
) -> Iterator[Probe]:
    """Ask the phrasings of one question, plain or after examples; one right answer is enough."""
    for question in drop_repeats(questions):
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
