"""KnowEdit ConvSent: make a speaker positive or negative about a topic."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.aliases import drop_repeats
from corrigenda.benchmarks.benchmark import Benchmark, Tally, UnusableRecord, make_cases
from corrigenda.benchmarks.files import BenchmarkFiles
from corrigenda.benchmarks.probes import make_fluency_probe
from corrigenda.cases import Against, Case, Probe, Protocol
from corrigenda.facts import Fact

_VERBS = ("think of", "feel about", "make of")
_NOUNS = (
    *("opinion of", "view of", "position on", "impression of", "assessment of"),
    *("attitude towards", "stance on", "judgement of", "take on", "feeling about"),
)
QUESTIONS = (
    *(f"What do you {verb} {{}}?" for verb in _VERBS),
    *(f"What is your {noun} {{}}?" for noun in _NOUNS),
)
"""Thirteen questions that ask for an opinion."""


class _ConvSentRecord(TypedDict):
    ent: str
    pos: list[str]
    neg: list[str]


class _Topic(NamedTuple):
    topic: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    question: str
    wants_positive: bool


_SCHEMA = TypeAdapter(_ConvSentRecord)


class KnowEditConvSent(Benchmark):
    """Modification of a sentiment.

    Attributes:
        part: "test", "train" or "val".
        seed: Decides the question and the sentiment of every record.
        answers: How many stored answers of each sentiment are asked; None takes all.
    """

    name: ClassVar[str] = "knowedit-convsent"
    kinds: ClassVar[tuple[str, ...]] = ("sentiment",)
    headline: ClassVar[tuple[str, ...]] = (
        "sentiment_success@rank",
        "locality_divergence@teacher_forced",
        "fluency@greedy",
    )
    part: Literal["test", "train", "val"] = "test"
    seed: int = 0
    answers: Annotated[int, Field(ge=1)] | None = None

    def read(self, files: BenchmarkFiles, tally: Tally) -> Iterator[Case]:
        """Yield one case a record."""
        draw = random.Random(f"convsent/{self.seed}")
        topics = [
            _Topic(
                topic=record["ent"].strip(),
                positive=drop_repeats(record["pos"])[: self.answers],
                negative=drop_repeats(record["neg"])[: self.answers],
                question=draw.choice(QUESTIONS).format(record["ent"].strip()),
                wants_positive=draw.random() < 0.5,
            )
            for record in files.read_records(files.find_main(), _SCHEMA)
        ]

        def make(index: int, record: _Topic) -> tuple[Case]:
            return (_make_case(index, record, topics[(index + 1) % len(topics)]),)

        yield from make_cases(topics, make, tally)


def _make_case(index: int, one: _Topic, other: _Topic) -> Case:
    if not (one.topic and one.positive and one.negative):
        raise UnusableRecord("there is no topic, or no answer of one sentiment")
    if other.topic == one.topic:
        raise UnusableRecord("there is no other topic to compare with")
    sentiment = "positive" if one.wants_positive else "negative"
    wanted, opposite = one.positive, one.negative
    if not one.wants_positive:
        wanted, opposite = opposite, wanted
    prompt = f"Give a {sentiment} answer. {one.question}"
    fact = Fact(
        prompt=prompt,
        target=wanted[0],
        subject=one.topic,
        subject_start=prompt.rindex(one.topic),
        name=f"record {index}",
    )
    probes = (
        *_make_score_probes(one.question, wanted, "sentiment/wanted"),
        *_make_score_probes(one.question, opposite, "sentiment/opposite"),
        *(
            Probe(
                prompt=other.question,
                expected=((answer,),),
                role="locality/other_topic",
                protocol=Protocol.TEACHER_FORCED,
                against=Against.UNEDITED,
                divergence=True,
            )
            for answer in other.positive + other.negative
        ),
        make_fluency_probe(one.question),
    )
    return Case(
        id=str(index),
        facts=(fact,),
        probes=probes,
        meta={"edit": "modification", "sentiment": sentiment, "topic": one.topic},
    )


def _make_score_probes(question: str, answers: Sequence[str], role: str) -> Iterator[Probe]:
    for answer in answers:
        yield Probe(prompt=question, expected=((answer,),), role=role, protocol=Protocol.RANK)
