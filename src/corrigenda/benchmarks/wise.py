"""The data of WISE: true sentences of passages, and things that changed after training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.benchmark import Benchmark, Tally, UnusableRecord, make_cases
from corrigenda.benchmarks.files import BenchmarkFiles
from corrigenda.benchmarks.probes import make_forced_probe, make_natural_probe
from corrigenda.cases import Against, Case, Probe, Protocol
from corrigenda.facts import Fact

_NEW_TOKENS = 100


class _WiseOptional(TypedDict, total=False):
    ood_rephrase: str


class _WiseRecord(_WiseOptional):
    prompt: str
    target_new: str
    subject: str
    locality_prompt: str
    locality_ground_truth: str


_SCHEMA = TypeAdapter(_WiseRecord)


class Wise(Benchmark):
    """Long edits: true sentences in place of invented ones, and descriptions of what is new.

    Attributes:
        part: "hallucination" or "temporal"; with "-train" the texts that WISE trains beside.
        generated: Whether the text after each prompt is generated as well, to be compared with the
            target by ROUGE.
    """

    name: ClassVar[str] = "wise"
    expects: ClassVar[tuple[str, ...]] = ("locality",)
    headline: ClassVar[tuple[str, ...]] = (
        "target_perplexity@teacher_forced",
        "reliability@teacher_forced",
        "reliability@generate:rouge_l",
        "unseen_share@teacher_forced",
        "locality@teacher_forced",
    )
    part: Literal["hallucination", "temporal", "hallucination-train", "temporal-train"] = (
        "hallucination"
    )
    generated: bool = True

    def read(self, files: BenchmarkFiles, tally: Tally) -> Iterator[Case]:
        """Yield one case a record."""

        def make(index: int, record: _WiseRecord) -> tuple[Case]:
            return (self._make_case(index, record, tally),)

        yield from make_cases(files.read_records(files.find_main(), _SCHEMA), make, tally)

    def _make_case(self, index: int, record: _WiseRecord, tally: Tally) -> Case:
        if not record["subject"].strip():
            raise UnusableRecord("the subject is empty")
        fact = Fact(
            prompt=record["prompt"],
            target=record["target_new"],
            subject=record["subject"],
            name=f"record {index}",
        )
        probes: list[Probe] = [make_forced_probe(fact.prompt, fact.target, "reliability")]
        if self.generated:
            probes.append(
                make_natural_probe(
                    fact.prompt, fact.target, "reliability", max_new_tokens=_NEW_TOKENS
                )
            )
        if text := record.get("ood_rephrase", "").strip():
            probes.append(
                Probe(
                    prompt="",
                    expected=((text,),),
                    role="unseen_text",
                    protocol=Protocol.TEACHER_FORCED,
                    against=Against.UNEDITED,
                    separator="",
                )
            )
        if record["locality_prompt"].strip() and record["locality_ground_truth"].strip():
            # A web text that is cut anywhere, often inside a word: nothing comes between.
            probes.append(
                Probe(
                    prompt=record["locality_prompt"],
                    expected=((record["locality_ground_truth"],),),
                    role="locality/web_text",
                    protocol=Protocol.TEACHER_FORCED,
                    against=Against.UNEDITED,
                    separator="",
                )
            )
        else:
            tally.skipped["locality/web_text: no text"] += 1
        kind = self.part.partition("-")[0]
        edit = "modification" if kind == "hallucination" else "insertion"
        meta: dict[str, object] = {"edit": edit, "relation": kind}
        return Case(id=str(index), facts=(fact,), probes=tuple(probes), meta=meta)
