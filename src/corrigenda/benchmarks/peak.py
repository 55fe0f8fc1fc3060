"""PEAK: a question with many right answers is given one more; the others should stay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.aliases import drop_repeats, is_same_name
from corrigenda.benchmarks.benchmark import Benchmark, Tally, UnusableRecord, make_cases
from corrigenda.benchmarks.counterfact.records import check_one_slot
from corrigenda.benchmarks.files import BenchmarkFiles
from corrigenda.cases import Against, Case, Probe, Protocol
from corrigenda.facts import Fact


class _TextRecord(TypedDict):
    str: str


class _RewriteRecord(TypedDict):
    prompt: Annotated[str, AfterValidator(check_one_slot)]
    relation_id: str
    target_new: _TextRecord
    target_true: _TextRecord
    subject: str


class _PeakRecord(TypedDict):
    case_id: int
    requested_rewrite: _RewriteRecord
    postive_list: list[str]
    negtive_list: list[str]
    negtive_random_list: list[str]
    para_add_prompts: list[str]
    neighborhood_prompts: list[tuple[str, str]]


_SCHEMA = TypeAdapter(_PeakRecord)


class Peak(Benchmark):
    """One answer appended to the right answers of a question.

    Attributes:
        part: "counterfactual" or "time" (real changes).
    """

    name: ClassVar[str] = "peak"
    kinds: ClassVar[tuple[str, ...]] = ("relation",)
    expects: ClassVar[tuple[str, ...]] = ("reliability", "generalization", "locality")
    headline: ClassVar[tuple[str, ...]] = (
        "appended@rank",
        "appended_paraphrase@rank",
        "answers_kept@rank",
        "additivity_forgetting@rank",
        "additivity_noising@rank",
        "additivity_forgetting@rank:random",
        "additivity_noising@rank:random",
    )
    part: Literal["counterfactual", "time"] = "counterfactual"

    def read(self, files: BenchmarkFiles, tally: Tally) -> Iterator[Case]:
        """Yield one case a record."""

        def make(_: int, record: _PeakRecord) -> tuple[Case]:
            return (_make_case(record, tally),)

        yield from make_cases(files.read_records(files.find_main(), _SCHEMA), make, tally)


def _make_case(record: _PeakRecord, tally: Tally) -> Case:
    rewrite = record["requested_rewrite"]
    subject, new = rewrite["subject"], rewrite["target_new"]["str"].strip()
    if not subject.strip():
        raise UnusableRecord("the subject is empty")
    right = tuple(one for one in drop_repeats(record["postive_list"]) if not is_same_name(one, new))
    known = {one.strip().lower() for one in (*right, new)}
    hard, random = (
        tuple(one for one in drop_repeats(record[key]) if one.strip().lower() not in known)
        for key in ("negtive_list", "negtive_random_list")
    )
    random = tuple(one for one in random if one not in hard)
    if not (right and hard and random):
        raise UnusableRecord("there is no right answer, or none of the wrong ones is left")
    fact = Fact(
        prompt=rewrite["prompt"].replace("{}", subject).rstrip(),
        target=new,
        subject=subject,
        subject_start=rewrite["prompt"].index("{}"),
        before=rewrite["target_true"]["str"].strip() or None,
        name=f"case {record['case_id']}",
    )
    prompts = [(fact.prompt, "reliability")]
    prompts += [(one, "generalization") for one in record["para_add_prompts"] if one.strip()]
    probes = [
        Probe(
            prompt=prompt.strip(),
            expected=((new,),),
            role=role,
            protocol=Protocol.RANK,
            against=Against.BEFORE,
            rivals=(*right, *hard, *random),
        )
        for prompt, role in prompts
    ]
    for prompt, answer in record["neighborhood_prompts"]:
        if not (prompt.strip() and answer.strip()) or is_same_name(answer, new):
            tally.skipped["locality/neighborhood: no answer, or the new one"] += 1
            continue
        probes.append(
            Probe(
                prompt=prompt.strip(),
                expected=((answer.strip(),),),
                role="locality/neighborhood",
                protocol=Protocol.RANK,
                against=Against.BEFORE,
                rivals=(new,),
            )
        )
    return Case(
        id=str(record["case_id"]),
        facts=(fact,),
        probes=tuple(probes),
        meta={
            "edit": "insertion",
            "relation": rewrite["relation_id"],
            "right": len(right),
            "hard": len(hard),
            "random": len(random),
        },
    )
