"""WikiBigEdit: changes between dumps of Wikidata, in eight consecutive steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.benchmark import Benchmark, Tally, UnusableRecord, make_cases
from corrigenda.benchmarks.files import BenchmarkFiles
from corrigenda.benchmarks.probes import make_forced_probe
from corrigenda.cases import Against, Case
from corrigenda.facts import Fact

REPEATED = "another record has the same question"

# Pandas writes a missing text as a number.
_Missing = str | float | None


class _WikiBigEditOptional(TypedDict, total=False):
    tag: _Missing
    rephrase: _Missing
    personas: _Missing
    loc: _Missing
    loc_ans: _Missing
    mhop: _Missing
    mhop_ans: _Missing


class _WikiBigEditRecord(_WikiBigEditOptional):
    subject: str
    update: str
    ans: str


_SCHEMA = TypeAdapter(_WikiBigEditRecord)

_FORM = "Q: {} A:"


class WikiBigEdit(Benchmark):
    """Real updates, one case a record.

    Attributes:
        part: The step, by the dates of its two dumps.
        form: Whether questions are asked as "Q: ... A:", as the paper does; else as they are.
    """

    name: ClassVar[str] = "wikibigedit"
    kinds: ClassVar[tuple[str, ...]] = ("tag",)
    expects: ClassVar[tuple[str, ...]] = ("reliability",)
    headline: ClassVar[tuple[str, ...]] = (
        "reliability@teacher_forced",
        "generalization@teacher_forced",
        "portability@teacher_forced",
        "locality@teacher_forced",
        "locality_correct@teacher_forced",
    )
    part: Literal[
        "20240201-20240220",
        "20240220-20240301",
        "20240301-20240320",
        "20240320-20240401",
        "20240401-20240501",
        "20240501-20240601",
        "20240601-20240620",
        "20240620-20240701",
    ] = "20240201-20240220"
    form: bool = True

    def read(self, files: BenchmarkFiles, tally: Tally) -> Iterator[Case]:
        """Yield one case a record."""
        records = files.read_records(files.find_main(), _SCHEMA)
        seen: set[str] = set()
        repeated = {one for record in records if (one := record["update"]) in seen or seen.add(one)}

        def make(index: int, record: _WikiBigEditRecord) -> tuple[Case]:
            return (self._make_case(index, record, tally, record["update"] in repeated),)

        yield from make_cases(records, make, tally)

    def _make_case(
        self, index: int, record: _WikiBigEditRecord, tally: Tally, repeated: bool
    ) -> Case:
        subject = record["subject"]
        if not subject.strip():
            raise UnusableRecord("the subject is empty")
        prompt = self._write(record["update"])
        target = record["ans"].strip()
        fact = Fact(prompt=prompt, target=target, subject=subject, name=f"record {index}")
        probes = [make_forced_probe(prompt, target, "reliability")]
        for kind in ("rephrase", "personas"):
            if text := _read(record.get(kind)):
                probes.append(
                    make_forced_probe(self._write(text), target, f"generalization/{kind}")
                )
            else:
                tally.skipped[f"generalization/{kind}: no prompt"] += 1
        question, answer = _read(record.get("mhop")), _read(record.get("mhop_ans"))
        if question and answer:
            probes.append(make_forced_probe(self._write(question), answer, "portability/two_hops"))
        else:
            tally.skipped["portability/two_hops: no answer"] += 1
        question, answer = _read(record.get("loc")), _read(record.get("loc_ans"))
        if question and answer:
            probes.append(
                make_forced_probe(
                    self._write(question), answer, "locality/similar", against=Against.UNEDITED
                )
            )
        else:
            tally.skipped["locality/similar: no answer"] += 1
        tag = _read(record.get("tag"))
        return Case(
            id=str(index),
            facts=(fact,),
            probes=tuple(probes),
            meta={
                "edit": "insertion" if tag.lower().startswith("new") else "modification",
                "tag": tag,
                "flags": (REPEATED,) if repeated else (),
            },
        )

    def _write(self, question: str) -> str:
        return _FORM.format(question.strip()) if self.form else question.strip()


def _read(text: _Missing) -> str:
    """Return a text; empty where it is missing, which the files write in several ways."""
    return text.strip() if isinstance(text, str) and text.strip().lower() != "nan" else ""
