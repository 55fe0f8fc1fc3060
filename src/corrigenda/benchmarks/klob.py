"""KLoB: does a method that locates knowledge find the same place for the same knowledge?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import AliasChoices, Field, TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.benchmark import Benchmark, Tally, UnusableRecord, make_cases
from corrigenda.benchmarks.files import BenchmarkFiles
from corrigenda.benchmarks.probes import make_forced_probe
from corrigenda.cases import Case, Probe, Protocol

_TRIPLE, _CHAIN = 3, 5


class _ConsistencyRecord(TypedDict):
    prompts: list[str]
    knowledge: list[str]


class _RelevanceRecord(TypedDict):
    single_knowledge: list[str]
    knowledge_chain: list[str]
    single_knowledge_prompts: Annotated[
        list[str],
        Field(validation_alias=AliasChoices("single_knowledge_prompts", "single_knowlege_prompts")),
    ]
    knowledge_chain_prompt: Annotated[
        str,
        Field(validation_alias=AliasChoices("knowledge_chain_prompt", "knowlege_chain_prompt")),
    ]


_CONSISTENCY = TypeAdapter(_ConsistencyRecord)
_RELEVANCE = TypeAdapter(_RelevanceRecord)
_TEXT = TypeAdapter(str)


class KLoB(Benchmark):
    """Prompts for methods that locate knowledge; nothing is edited.

    Attributes:
        part: "c" (consistency), "r" (relevance) or "u" (unbiasedness).
    """

    name: ClassVar[str] = "klob"
    headline: ClassVar[tuple[str, ...]] = (
        "locating_consistency",
        "locating_relevance",
    )
    part: Literal["c", "r", "u"] = "c"

    def read(self, files: BenchmarkFiles, tally: Tally) -> Iterator[Case]:
        """Yield one case a record."""
        path = files.find_main()
        match self.part:
            case "c":
                yield from make_cases(
                    files.read_records(path, _CONSISTENCY), _make_consistency_case, tally
                )
            case "r":
                yield from make_cases(
                    files.read_records(path, _RELEVANCE), _make_relevance_case, tally
                )
            case "u":
                yield from make_cases(
                    files.read_records(path, _TEXT), _make_unbiasedness_case, tally
                )


def _make_consistency_case(index: int, record: _ConsistencyRecord) -> tuple[Case]:
    subject, relation, answer = _strip_fact(record["knowledge"], _TRIPLE)
    prompts = _strip_slots(record["prompts"])
    if len(prompts) < 2:
        raise UnusableRecord("there are no two sentences to compare")
    return (
        Case(
            id=str(index),
            facts=(),
            probes=tuple(
                make_forced_probe(prompt, answer, "locating/consistency") for prompt in prompts
            ),
            meta={"subject": subject, "relation": relation},
        ),
    )


def _make_relevance_case(index: int, record: _RelevanceRecord) -> tuple[Case]:
    subject, relation, answer = _strip_fact(record["single_knowledge"], _TRIPLE)
    *_, end = _strip_fact(record["knowledge_chain"], _CHAIN)
    singles = _strip_slots(record["single_knowledge_prompts"])
    chain = _strip_slots([record["knowledge_chain_prompt"]])
    if not (singles and chain):
        raise UnusableRecord("there is no sentence")
    return (
        Case(
            id=str(index),
            facts=(),
            probes=(
                *(
                    make_forced_probe(prompt, answer, "locating/relevance_single")
                    for prompt in singles
                ),
                make_forced_probe(chain[0], end, "locating/relevance_chain"),
            ),
            meta={"subject": subject, "relation": relation},
        ),
    )


def _make_unbiasedness_case(index: int, record: str) -> tuple[Case]:
    prompts = _strip_slots([record])
    if not prompts:
        raise UnusableRecord("there are no words")
    probe = Probe(
        prompt=prompts[0],
        role="locating/unbiasedness",
        protocol=Protocol.GREEDY,
        max_new_tokens=1,
    )
    return (Case(id=str(index), facts=(), probes=(probe,)),)


def _strip_fact(parts: Sequence[str], number: int) -> Sequence[str]:
    if len(parts) != number or not all(part.strip() for part in parts):
        raise UnusableRecord("a fact is incomplete")
    return [part.strip() for part in parts]


def _strip_slots(texts: Sequence[str]) -> list[str]:
    """Cut sentences before the slot "_" at their end, which is no word for a causal model."""
    found = (text.strip().removesuffix("_").rstrip() for text in texts)
    return [text for text in found if text]
