"""KLoB: does a method that locates knowledge find the same place for the same knowledge?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import AliasChoices, Field, TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.benchmark import Benchmark, Tally, Unusable, each
from corrigenda.benchmarks.files import Files
from corrigenda.benchmarks.probes import forced
from corrigenda.cases import Case, Probe, Protocol

_TRIPLE, _CHAIN = 3, 5


class _Consistency(TypedDict):
    prompts: list[str]
    knowledge: list[str]


class _Relevance(TypedDict):
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


_CONSISTENCY = TypeAdapter(_Consistency)
_RELEVANCE = TypeAdapter(_Relevance)
_TEXT = TypeAdapter(str)


class KLoB(Benchmark):
    """Prompts to locate; nothing is edited.

    Attributes:
        part: "c" (consistency), "r" (relevance) or "u" (unbiasedness).
    """

    name: ClassVar[str] = "klob"
    part: Literal["c", "r", "u"] = "c"

    def read(self, files: Files, tally: Tally) -> Iterator[Case]:
        """Yield one case a record."""
        path = files.main()
        match self.part:
            case "c":
                yield from each(files.records(path, _CONSISTENCY), _consistent, tally)
            case "r":
                yield from each(files.records(path, _RELEVANCE), _relevant, tally)
            case "u":
                yield from each(files.records(path, _TEXT), _unbiased, tally)


def _consistent(index: int, record: _Consistency) -> tuple[Case]:
    subject, relation, answer = _knowledge(record["knowledge"], _TRIPLE)
    prompts = _prompts(record["prompts"])
    if len(prompts) < 2:
        raise Unusable("there are no two sentences to compare")
    return (
        Case(
            id=str(index),
            facts=(),
            probes=tuple(forced(prompt, answer, "locating/consistency") for prompt in prompts),
            meta={"subject": subject, "relation": relation},
        ),
    )


def _relevant(index: int, record: _Relevance) -> tuple[Case]:
    subject, relation, answer = _knowledge(record["single_knowledge"], _TRIPLE)
    *_, end = _knowledge(record["knowledge_chain"], _CHAIN)
    singles = _prompts(record["single_knowledge_prompts"])
    chain = _prompts([record["knowledge_chain_prompt"]])
    if not (singles and chain):
        raise Unusable("there is no sentence")
    return (
        Case(
            id=str(index),
            facts=(),
            probes=(
                *(forced(prompt, answer, "locating/relevance_single") for prompt in singles),
                forced(chain[0], end, "locating/relevance_chain"),
            ),
            meta={"subject": subject, "relation": relation},
        ),
    )


def _unbiased(index: int, record: str) -> tuple[Case]:
    prompts = _prompts([record])
    if not prompts:
        raise Unusable("there are no words")
    probe = Probe(
        prompt=prompts[0],
        role="locating/unbiasedness",
        protocol=Protocol.GREEDY,
        max_new_tokens=1,
    )
    return (Case(id=str(index), facts=(), probes=(probe,)),)


def _knowledge(parts: Sequence[str], number: int) -> Sequence[str]:
    if len(parts) != number or not all(part.strip() for part in parts):
        raise Unusable("a fact is incomplete")
    return [part.strip() for part in parts]


def _prompts(texts: Sequence[str]) -> list[str]:
    """Sentences up to the slot "_" at their end, which is no word for a causal model."""
    found = (text.strip().removesuffix("_").rstrip() for text in texts)
    return [text for text in found if text]
