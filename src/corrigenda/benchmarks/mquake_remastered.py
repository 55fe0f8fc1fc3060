"""MQuAKE-Remastered: corrected questions of several hops, with a memory of edits for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.aliases import drop_repeats
from corrigenda.benchmarks.benchmark import Benchmark, Tally, UnusableRecord, make_cases
from corrigenda.benchmarks.counterfact.records import TargetRecord, check_one_slot
from corrigenda.benchmarks.files import BenchmarkFiles
from corrigenda.cases import Case, Probe, Protocol
from corrigenda.facts import Fact

NEW_TOKENS = 20

_Triple = list[str]


class _RewriteOptional(TypedDict, total=False):
    target_new: TargetRecord
    target_true: TargetRecord
    target_new_str: str
    target_true_str: str
    target_new_id: str
    target_true_id: str
    relation_id: str
    question: str


class _RewriteRecord(_RewriteOptional):
    prompt: Annotated[str, AfterValidator(check_one_slot)]
    subject: str


class _TriplesRecord(TypedDict, total=False):
    triples: list[_Triple]
    triples_labeled: list[_Triple]
    new_triples: list[_Triple]
    new_triples_labeled: list[_Triple]
    edit_triples: list[_Triple]


class _RemasteredOptional(TypedDict, total=False):
    orig: _TriplesRecord
    orig_triples: list[_Triple]
    orig_triples_labeled: list[_Triple]
    new_triples: list[_Triple]
    new_triples_labeled: list[_Triple]
    edit_triples: list[_Triple]
    split: dict[str, object]
    answer_alias: list[str]
    new_answer_alias: list[str]


# Another name for `split` in earlier files.
_Older = TypedDict("_Older", {"6334_split": dict[str, object]}, total=False)


class _RemasteredRecord(_RemasteredOptional, _Older):
    case_id: int
    requested_rewrite: list[_RewriteRecord]
    questions: list[str]
    answer: str
    new_answer: str


class _Edit(TypedDict):
    subject: str
    relation: str
    object: str
    fact: Fact


_SCHEMA = TypeAdapter(_RemasteredRecord)


class MQuAKERemastered(Benchmark):
    """Multi-hop questions after none, some or all of the edits of a split.

    Attributes:
        part: "cf-3k", "cf-9k", "cf-6334" or "t".
        edited: How many cases are edited at once, as the file labels them; None edits each case
            alone. With a number, every case has the edits of all edited ones as its facts, but
            those that contradict its own right path (see the card).
    """

    name: ClassVar[str] = "mquake-remastered"
    kinds: ClassVar[tuple[str, ...]] = ("hops", "is_edited")
    expects: ClassVar[tuple[str, ...]] = ("portability",)
    headline: ClassVar[tuple[str, ...]] = ("multi_hop@greedy:any", "multi_hop@greedy:mean")
    part: Literal["cf-3k", "cf-9k", "cf-6334", "t"] = "cf-3k"
    edited: Annotated[int, Field(ge=1)] | None = None

    def read(self, files: BenchmarkFiles, tally: Tally) -> Iterator[Case]:
        """Yield one case a record."""
        records = files.read_records(files.find_main(), _SCHEMA)
        chosen = [record for record in records if self._is_edited(record)]
        memory = [one for record in chosen for one in _list_edits(record)]

        def make(_: int, record: _RemasteredRecord) -> tuple[Case]:
            return (self._make_case(record, memory, tally),)

        yield from make_cases(records, make, tally)

    def _is_edited(self, record: _RemasteredRecord) -> bool:
        if self.edited is None:
            return True
        label = str(_read_split(record).get(str(self.edited), ""))
        return "edited" in label and "unedited" not in label

    def _make_case(self, record: _RemasteredRecord, memory: Sequence[_Edit], tally: Tally) -> Case:
        questions = drop_repeats(record["questions"])
        is_edited = self._is_edited(record)
        answer = record["new_answer"] if is_edited else record["answer"]
        aliases = record.get("new_answer_alias" if is_edited else "answer_alias", [])
        right = drop_repeats((answer, *aliases))
        if not (questions and right):
            raise UnusableRecord("there is no question, or no answer")
        path = _read_path(record, is_edited)
        if not path:
            raise UnusableRecord("there is no path of facts")
        own = _list_edits(record)
        if not own:
            raise UnusableRecord("there is no edit")
        kept = own if self.edited is None else _mask(memory, path)
        if not kept:
            raise UnusableRecord("every edit contradicts the right path")
        tally.skipped["edits left out of a memory, as they contradict its question"] += (
            0 if self.edited is None else len(memory) - len(kept)
        )
        old = drop_repeats((record["answer"], *record.get("answer_alias", [])))
        stale = tuple(one for one in old if one not in right) if is_edited else ()
        probes = tuple(
            Probe(
                prompt=f"Q: {question} A:",
                expected=(right,),
                role="portability/multi_hop",
                protocol=Protocol.GREEDY,
                rivals=stale,
                test="question",
                every=False,
                max_new_tokens=NEW_TOKENS,
            )
            for question in questions
        )
        return Case(
            id=str(record["case_id"]),
            facts=tuple(one["fact"] for one in kept),
            probes=probes,
            meta={
                "edit": "modification",
                "hops": len(path),
                "edits": len(own),
                "is_edited": is_edited,
                "split": str(_read_split(record).get(str(self.edited), "")),
            },
        )


def _mask(memory: Sequence[_Edit], path: Sequence[_Triple]) -> list[_Edit]:
    """Return the edits that do not give a fact of a path another object."""
    objects = {(one[0], one[1]): one[2] for one in path}
    return [
        one
        for one in memory
        if objects.get((one["subject"], one["relation"]), one["object"]) == one["object"]
    ]


def _read_path(record: _RemasteredRecord, is_edited: bool) -> list[_Triple]:
    """Return the facts that lead to the right answer; by id, so that equal names do not meet."""
    inner = record.get("orig", {})
    if is_edited:
        return record.get("new_triples") or inner.get("new_triples") or []
    return record.get("orig_triples") or inner.get("triples") or []


def _list_edits(record: _RemasteredRecord) -> list[_Edit]:
    """Return the edits of a case, with the ids of subject, relation and new object."""
    triples = record.get("edit_triples") or record.get("orig", {}).get("edit_triples") or []
    new = record.get("new_triples") or record.get("orig", {}).get("new_triples") or []
    if not triples:
        before = {(one[0], one[1], one[2]) for one in _read_path(record, False)}
        triples = [one for one in new if (one[0], one[1], one[2]) not in before]
    found: list[_Edit] = []
    for number, rewrite in enumerate(record["requested_rewrite"]):
        target = _read_target(rewrite, "new")
        relation = rewrite.get("relation_id", "")
        triple = _find_triple(triples, relation, rewrite, number)
        if not (target and rewrite["subject"].strip() and triple):
            continue
        fact = Fact(
            prompt=rewrite["prompt"].replace("{}", rewrite["subject"]).rstrip(),
            target=target,
            subject=rewrite["subject"],
            subject_start=rewrite["prompt"].index("{}"),
            before=_read_target(rewrite, "true") or None,
            name=f"case {record['case_id']}, edit {number}",
        )
        found.append(
            {"subject": triple[0], "relation": triple[1], "object": triple[2], "fact": fact}
        )
    return found


def _find_triple(
    triples: Sequence[_Triple], relation: str, rewrite: _RewriteRecord, number: int
) -> _Triple | None:
    target = rewrite.get("target_new", {}).get("id") or rewrite.get("target_new_id", "")
    for one in triples:
        if one[1] == relation and target and one[2] == target:
            return one
    same = [one for one in triples if one[1] == relation]
    if len(same) == 1:
        return same[0]
    return triples[number] if number < len(triples) else None


def _read_target(rewrite: _RewriteRecord, which: Literal["new", "true"]) -> str:
    flat = rewrite.get("target_new_str" if which == "new" else "target_true_str")
    nested = rewrite.get("target_new" if which == "new" else "target_true")
    return (flat if flat is not None else nested["str"] if nested else "").strip()


def _read_split(record: _RemasteredRecord) -> Mapping[str, object]:
    return record.get("split") or record.get("6334_split") or {}
