"""AKEW: one change of a fact, given as a fact, as a text, or as the triples of that text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.aliases import drop_repeats
from corrigenda.benchmarks.benchmark import Benchmark, Tally, UnusableRecord, make_cases
from corrigenda.benchmarks.counterfact.records import TargetRecord, check_one_slot
from corrigenda.benchmarks.files import BenchmarkFiles
from corrigenda.benchmarks.probes import make_natural_probe
from corrigenda.cases import Case, Probe
from corrigenda.errors import CorrigendaError
from corrigenda.facts import Fact

NO_TEXT = "the record has no text of the change"
NO_TRIPLES = "the record has no triples of its text"
_PARTS = 5


class _TripleRecord(TypedDict):
    subject: str
    prompt: str
    target: str


class _RewriteOptional(TypedDict, total=False):
    answer_new: str | list[str]
    answer_new_alias: list[str]
    fact_new_uns: str
    unsfact_triplets_GPT: list[_TripleRecord]


class _RewriteRecord(_RewriteOptional):
    prompt: Annotated[str, AfterValidator(check_one_slot)]
    subject: str
    target_new: TargetRecord | str
    target_true: TargetRecord | str
    question: str


class _AkewOptional(TypedDict, total=False):
    paraphrase_prompts: list[str]
    questions: list[str]
    new_answer: str
    new_answer_alias: list[str]


class _AkewRecord(_AkewOptional):
    case_id: int
    requested_rewrite: _RewriteRecord | list[_RewriteRecord]


_SCHEMA = TypeAdapter(_AkewRecord)


class Akew(Benchmark):
    """The same question after a structured edit, a text, and triples taken from the text.

    Attributes:
        part: "counterfact", "mquake-cf" or "wikiupdate".
        setting: What is edited: the fact ("structured"), the text about it ("text"), or what a
            model took from the text ("triples").
    """

    name: ClassVar[str] = "akew"
    expects: ClassVar[tuple[str, ...]] = ("reliability",)
    headline: ClassVar[tuple[str, ...]] = (
        "reliability@generate:contains",
        "generalization@generate:contains",
        "portability@generate:contains",
    )
    part: Literal["counterfact", "mquake-cf", "wikiupdate"] = "counterfact"
    setting: Literal["structured", "text", "triples"] = "structured"

    def read(self, files: BenchmarkFiles, tally: Tally) -> Iterator[Case]:
        """Yield one case a record."""

        def make(_: int, record: _AkewRecord) -> tuple[Case]:
            return (self._make_case(record, tally),)

        yield from make_cases(files.read_records(files.find_main(), _SCHEMA), make, tally)

    def _make_case(self, record: _AkewRecord, tally: Tally) -> Case:
        given = record["requested_rewrite"]
        rewrites = given if isinstance(given, list) else [given]
        if not rewrites:
            raise UnusableRecord("there is no edit")
        name = f"case {record['case_id']}"
        facts = [fact for one in rewrites for fact in self._make_facts(one, name, tally)]
        probes: list[Probe] = []
        for one in rewrites:
            old = _text(one["target_true"])
            rivals = (old,) if old else ()
            expected = (_list_answers(one),)
            probes.append(
                make_natural_probe(one["question"], expected, "reliability", rivals=rivals)
            )
            for number, triple in enumerate(one.get("unsfact_triplets_GPT", ())):
                prompt = triple["prompt"].replace("{}", triple["subject"]).strip()
                if number < _PARTS and prompt and triple["target"].strip():
                    probes.append(make_natural_probe(prompt, triple["target"], "portability/part"))
        expected = (_list_answers(rewrites[0]),)
        for prompt in record.get("paraphrase_prompts", ()):
            if prompt.strip():
                probes.append(make_natural_probe(prompt, expected, "generalization"))
        new = drop_repeats((record.get("new_answer", ""), *record.get("new_answer_alias", ())))
        for question in drop_repeats(record.get("questions", ())) if new else ():
            probe = make_natural_probe(question, (new,), "portability/multi_hop")
            probes.append(probe)
        return Case(
            id=str(record["case_id"]),
            facts=tuple(facts),
            probes=tuple(probes),
            meta={"edit": "modification", "edits": len(rewrites), "setting": self.setting},
        )

    def _make_facts(self, one: _RewriteRecord, name: str, tally: Tally) -> Iterator[Fact]:
        subject = one["subject"]
        if self.setting == "structured":
            yield Fact(
                prompt=one["prompt"].replace("{}", subject).rstrip(),
                target=_text(one["target_new"]),
                subject=subject,
                subject_start=one["prompt"].index("{}"),
                before=_text(one["target_true"]) or None,
                name=name,
            )
        elif self.setting == "text":
            text = one.get("fact_new_uns", "").strip()
            if not text:
                raise UnusableRecord(NO_TEXT)
            known = subject if one["question"].count(subject) == 1 else None
            yield Fact(prompt=one["question"], target=text, subject=known, name=name)
        else:
            triples = one.get("unsfact_triplets_GPT", ())
            made = [fact for triple in triples if (fact := _make_triple(triple, name, tally))]
            if not made:
                raise UnusableRecord(NO_TRIPLES)
            yield from made


def _make_triple(triple: _TripleRecord, name: str, tally: Tally) -> Fact | None:
    """Return the fact of a triple that a model took from a text; None where it is none."""
    template, subject = triple["prompt"], triple["subject"]
    if not subject.strip():
        tally.skipped["a triple without subject"] += 1
        return None
    prompt = template.replace("{}", subject) if "{}" in template else f"{subject} {template}"
    try:
        start = template.index("{}") if "{}" in template else 0
        return Fact(
            prompt=prompt,
            target=triple["target"],
            subject=subject,
            subject_start=start,
            name=name,
        )
    except CorrigendaError:
        tally.skipped["a triple that is no fact"] += 1
        return None


def _text(target: TargetRecord | str) -> str:
    return (target if isinstance(target, str) else target["str"]).strip()


def _list_answers(one: _RewriteRecord) -> tuple[str, ...]:
    given = one.get("answer_new", "")
    own = [given] if isinstance(given, str) else given
    return drop_repeats((_text(one["target_new"]), *own, *one.get("answer_new_alias", ())))
