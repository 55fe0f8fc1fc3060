"""HalluEditBench: true answers to questions that a model answered with something invented."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, cast

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.benchmark import Benchmark, Tally, UnusableRecord, make_cases
from corrigenda.benchmarks.files import BenchmarkFiles, validate_records
from corrigenda.benchmarks.probes import make_natural_probe
from corrigenda.cases import Against, Case, Probe, Protocol
from corrigenda.errors import MalformedRecords
from corrigenda.facts import Fact

NEW_TOKENS = 16
HOPS = range(2, 7)
_INVENTED = "output_"
_LETTERS = "ABCD"


class _HalluOptional(TypedDict, total=False):
    topic_file: str
    topic: str
    relation: str
    multiple_choices: str
    multiple_choice_with_letters: str
    multiple_choice_labels: str
    paraphrased_question: str
    yes_question: str
    no_question: str
    locality_question: str
    reversed_relation_question: str
    question_2hop: str
    answer_2hop: str
    question_3hop: str
    answer_3hop: str
    question_4hop: str
    answer_4hop: str
    question_5hop: str
    answer_5hop: str
    question_6hop: str
    answer_6hop: str
    invented: str


class _HalluRecord(_HalluOptional):
    subject: str
    object: str
    question: str


_SCHEMA = TypeAdapter(_HalluRecord)


class HalluEditBench(Benchmark):
    """Five dimensions of an edit that corrects a hallucination.

    Attributes:
        turns: Number of follow-up turns in which the answer is doubted (the paper has 10); the
            model writes its own answer at each, so t turns cost t answers.
    """

    name: ClassVar[str] = "hallueditbench"
    kinds: ClassVar[tuple[str, ...]] = ("topic",)
    expects: ClassVar[tuple[str, ...]] = ("generalization", "portability", "locality")
    headline: ClassVar[tuple[str, ...]] = (
        "hallu_efficacy@generate",
        "hallu_generalization@generate",
        "hallu_portability@generate",
        "hallu_locality@generate",
        "hallu_robustness@generate",
    )
    turns: Annotated[int, Field(ge=0, le=10)] = 0

    def read(self, files: BenchmarkFiles, tally: Tally) -> Iterator[Case]:
        """Yield one case a record."""
        path = files.find_main()
        raw = files.read_document(path)
        if not isinstance(raw, list):
            raise MalformedRecords("the file holds no list of records.", where=str(path))
        renamed = [_name_invented(cast("object", one)) for one in raw]
        records = validate_records(renamed, _SCHEMA, where=str(path))
        files.count_unknown(renamed, _SCHEMA)

        def make(index: int, record: _HalluRecord) -> tuple[Case]:
            return (self._make_case(index, record, path.stem, tally),)

        yield from make_cases(records, make, tally)

    def _make_case(self, index: int, record: _HalluRecord, file: str, tally: Tally) -> Case:
        question, right = record["question"].strip(), record["object"].strip()
        if not record["subject"].strip():
            raise UnusableRecord("the subject is empty")
        invented = record.get("invented", "").strip()
        fact = Fact(
            prompt=question,
            target=right,
            subject=record["subject"],
            before=invented or None,
            name=f"record {index}",
        )
        rivals = (invented,) if invented else ()
        probes = [_make(question, right, "reliability", rivals)]
        probes += self._make_general(record, right, rivals, tally)
        for hop in HOPS:
            prompt = str(record.get(f"question_{hop}hop", "")).strip()
            answer = str(record.get(f"answer_{hop}hop", "")).strip()
            if prompt and answer:
                probes.append(_make(prompt, answer, f"portability/{hop}_hops"))
            else:
                tally.skipped[f"portability/{hop}_hops: no answer"] += 1
        elsewhere = record.get("locality_question", "").strip()
        if elsewhere:
            probes.append(
                make_natural_probe(
                    elsewhere,
                    (),
                    "locality/question",
                    against=Against.UNEDITED,
                    max_new_tokens=NEW_TOKENS,
                )
            )
        else:
            tally.skipped["locality/question: no prompt"] += 1
        probes += self._make_turns(question, record.get("yes_question", ""))
        topic = record.get("topic") or record.get("topic_file") or file
        meta = {"edit": "modification", "topic": topic, "relation": record.get("relation", "")}
        return Case(id=str(index), facts=(fact,), probes=tuple(probes), meta=meta)

    def _make_general(
        self, record: _HalluRecord, right: str, rivals: tuple[str, ...], tally: Tally
    ) -> Iterator[Probe]:
        """Yield the five kinds of questions whose mean is the generalization of the paper."""
        asked = (
            ("rephrased", record.get("paraphrased_question", ""), right, rivals),
            ("yes", record.get("yes_question", ""), "Yes", ("No",)),
            ("no", record.get("no_question", ""), "No", ("Yes",)),
            ("reversed", record.get("reversed_relation_question", ""), record["subject"], ()),
        )
        for kind, prompt, expected, others in asked:
            if prompt.strip():
                yield _make(prompt, expected, f"generalization/{kind}", others)
            else:
                tally.skipped[f"generalization/{kind}: no prompt"] += 1
        letter = record.get("multiple_choice_labels", "").strip()
        shown = record.get("multiple_choice_with_letters", "").strip()
        if letter in _LETTERS and letter and shown and _holds_right(record, right):
            prompt = f"{record['question'].strip()}\n{shown}\nAnswer with the letter alone."
            yield _make(prompt, letter, "generalization/choice")
        else:
            tally.skipped["generalization/choice: no options, or none is right"] += 1

    def _make_turns(self, question: str, doubt: str) -> Iterator[Probe]:
        """Yield a dialogue for each number of turns in which the answer is doubted."""
        for turn in range(1, self.turns + 1) if doubt.strip() else ():
            follow = f"That is not right, is it? {doubt.strip()}\n"
            yield Probe(
                prompt=f"{question}\n",
                expected=(("Yes",),),
                role=f"doubted/turn_{turn}",
                protocol=Protocol.GENERATE,
                rivals=("No",),
                max_new_tokens=NEW_TOKENS,
                turns=(follow,) * turn,
            )


def read_options(text: str) -> list[str]:
    """Return the options in a list that is written as Python writes it; none where it is none.

    The text is read as a literal, never run.

    Example:
        >>> read_options("['Norway', 'Chile']"), read_options("open('x')")
        (['Norway', 'Chile'], [])
    """
    try:
        found: object = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    if not isinstance(found, list):
        return []
    return [one for one in cast("list[object]", found) if isinstance(one, str)]


def _holds_right(record: _HalluRecord, right: str) -> bool:
    listed = record.get("multiple_choices", "")
    return not listed or right in read_options(listed)


def _make(prompt: str, expected: str, role: str, rivals: tuple[str, ...] = ()) -> Probe:
    return make_natural_probe(prompt, expected, role, rivals=rivals, max_new_tokens=NEW_TOKENS)


def _name_invented(record: object) -> object:
    """Return a record with what its model invented under one name, whichever model it was."""
    if not isinstance(record, Mapping):
        return record
    fields = cast("Mapping[str, object]", record)
    return {
        "invented" if name.startswith(_INVENTED) else name: value for name, value in fields.items()
    }
