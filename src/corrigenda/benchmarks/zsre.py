"""zsRE in the form of MEND: questions with a rephrasing and an unrelated question."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.aliases import drop_repeats, is_same_name
from corrigenda.benchmarks.benchmark import Benchmark, Tally, UnusableRecord, make_cases
from corrigenda.benchmarks.files import BenchmarkFiles
from corrigenda.benchmarks.knowedit.records import find_repeats
from corrigenda.benchmarks.probes import make_forced_probe
from corrigenda.cases import Against, Case, Probe
from corrigenda.facts import Fact

_NATURAL_QUESTIONS = "nq question: "

_Portability = TypedDict(
    "_Portability", {"Recalled Relation": str, "New Question": str, "New Answer": str}
)


class _ZsREOptional(TypedDict, total=False):
    portability: _Portability | None


class _ZsRERecord(_ZsREOptional):
    subject: str
    src: str
    pred: str
    rephrase: str
    alt: str
    answers: list[str]
    loc: str
    loc_ans: str


_SCHEMA = TypeAdapter(_ZsRERecord)


class ZsRE(Benchmark):
    """Answers to questions, edited to another answer or to the true one.

    Attributes:
        part: "eval", "portability", "train" or "train-10000".
        direction: "alternative" edits towards `alt`, as MEND and EasyEdit do; "truth" towards the
            first of `answers`, as ROME and MEMIT do. The two are not comparable.
        legacy: Ask the unrelated question as the references do: with "nq question: " in front, and
            a question mark only with direction "truth".
    """

    name: ClassVar[str] = "zsre"
    expects: ClassVar[tuple[str, ...]] = ("generalization", "locality")
    headline: ClassVar[tuple[str, ...]] = (
        "reliability@teacher_forced",
        "generalization@teacher_forced",
        "locality@teacher_forced",
        "portability@teacher_forced",
    )
    part: Literal["eval", "portability", "train", "train-10000"] = "eval"
    direction: Literal["alternative", "truth"] = "alternative"
    legacy: bool = False

    def read(self, files: BenchmarkFiles, tally: Tally) -> Iterator[Case]:
        """Yield one case a record."""
        records = files.read_records(files.find_main(), _SCHEMA)
        repeated = find_repeats(record["src"] for record in records)

        def make(index: int, record: _ZsRERecord) -> tuple[Case]:
            return (self._make_case(index, record, tally, record["src"] in repeated),)

        yield from make_cases(records, make, tally)

    def _make_case(self, index: int, record: _ZsRERecord, tally: Tally, repeated: bool) -> Case:
        answers = drop_repeats(record["answers"])
        if not answers:
            raise UnusableRecord("there is no true answer")
        if not record["subject"].strip():
            raise UnusableRecord("the subject is empty")
        if self.direction == "truth":
            target, old = answers[0], (record["pred"],)
        else:
            target, old = record["alt"].strip(), answers
        rivals = tuple(one for one in drop_repeats(old) if not is_same_name(one, target))
        fact = Fact(
            prompt=record["src"].strip(),
            target=target,
            subject=record["subject"],
            before=old[0].strip() or None,
            name=f"record {index}",
        )
        flags = []
        if len(rivals) < len(drop_repeats(old)):
            flags.append("the target is among the old answers")
        if repeated:
            flags.append("another record has the same prompt")
        probes = [make_forced_probe(fact.prompt, target, "reliability", rivals=rivals)]
        if record["rephrase"].strip():
            probes.append(
                make_forced_probe(record["rephrase"], target, "generalization", rivals=rivals)
            )
        else:
            tally.skipped["generalization: no prompt"] += 1
        if record["loc"].strip() and record["loc_ans"].strip():
            probes.append(
                make_forced_probe(
                    self._format_unrelated(record["loc"].strip()),
                    record["loc_ans"].strip(),
                    "locality/unrelated_question",
                    against=Against.TARGET if self.direction == "truth" else Against.UNEDITED,
                )
            )
        else:
            tally.skipped["locality/unrelated_question: no answer"] += 1
        # Written for `alt`: what follows from the truth is not in the file.
        if (further := record.get("portability")) and self.direction == "alternative":
            probes += _make_one_hop_probes(further, tally)
        return Case(
            id=str(index),
            facts=(fact,),
            probes=tuple(probes),
            meta={"edit": "modification", "direction": self.direction, "flags": tuple(flags)},
        )

    def _format_unrelated(self, question: str) -> str:
        if self.legacy:
            return f"{question}?" if self.direction == "truth" else question
        question = question.removeprefix(_NATURAL_QUESTIONS)
        return question if question.endswith("?") else f"{question}?"


def _make_one_hop_probes(further: _Portability, tally: Tally) -> Iterator[Probe]:
    question, answer = further["New Question"], further["New Answer"].strip()
    if question.strip() and answer:
        yield make_forced_probe(question, answer, "portability/one_hop")
    else:
        tally.skipped["portability/one_hop: no answer"] += 1
