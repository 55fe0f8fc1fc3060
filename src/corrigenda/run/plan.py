"""Cases and a regime become units of work, each by itself, in a fixed order."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

from corrigenda.benchmarks.benchmark import BENCHMARKS, LoadedBenchmark
from corrigenda.benchmarks.robustness_contexts import add_surroundings
from corrigenda.cases import Case, Probe
from corrigenda.facts import Fact
from corrigenda.run.health import text_question, texts_of
from corrigenda.run.prober import Question, question_of
from corrigenda.run.spec import DataSpec, Regime, RunSpec
from corrigenda.run.tasks import items_of

CONDITION = "condition"
"""Role of probes that only the unedited model is asked, and that decide whether others count."""

Block = tuple[Question, ...]
"""Questions to the unedited model that are asked and kept together."""

Element = TypeVar("Element")

_CASES_ASKED_TOGETHER = 64
_TEXTS_ASKED_TOGETHER = 1024


class Data(NamedTuple):
    """What the benchmarks of a run hold.

    Attributes:
        cases: All cases, their probes as they are asked.
        counts: Of each benchmark: its counts, and what was left out by reason.
        files: Files that were read, with their checksums.
    """

    cases: tuple[Case, ...]
    counts: dict[str, object]
    files: list[dict[str, object]]

    def digest(self) -> str:
        """Hash of all cases, in order."""
        return digest_of(self.cases)


class Step(NamedTuple):
    """One edit of a unit, and who is asked after it.

    Attributes:
        number: From 0.
        cases: Cases that are edited now.
        begin: Number of cases of the unit edited before.
        in_sequence: Whether those edits are still in force.
        asked_again: Whether every case so far is asked, with all its probes.
    """

    number: int
    cases: tuple[Case, ...]
    begin: int
    in_sequence: bool
    asked_again: bool

    @property
    def end(self) -> int:
        """Number of cases of the unit edited after it."""
        return self.begin + len(self.cases)


@dataclass(frozen=True)
class Unit:
    """Work that depends on nothing but the unedited model: a case, a batch, or a whole sequence.

    Attributes:
        number: Place in the plan, from 0.
        cases: Its cases, in the order of editing.
        size: Cases in one edit.
        in_sequence: Whether edits stay while others follow.
        checkpoints: Numbers of cases after which all of them are asked.
    """

    number: int
    cases: tuple[Case, ...]
    size: int
    in_sequence: bool
    checkpoints: tuple[int, ...] = ()

    @cached_property
    def id(self) -> str:
        """Hash of its content."""
        return digest_of((self.cases, self.size, self.in_sequence, self.checkpoints))

    @property
    def label(self) -> str:
        """How measurements call it."""
        if self.in_sequence:
            return f"sequence {self.number}"
        return self.cases[0].id if len(self.cases) == 1 else f"batch {self.number}"

    @property
    def steps(self) -> Iterator[Step]:
        """Its edits, one after the other."""
        for number, begin in enumerate(range(0, len(self.cases), self.size)):
            cases = self.cases[begin : begin + self.size]
            end = begin + len(cases)
            last = end == len(self.cases)
            again = any(begin < moment <= end for moment in self.checkpoints)
            yield Step(number, cases, begin, self.in_sequence, last or again)

    def part(self, step: Step) -> str:
        """Name of what a step records; names of later steps and units sort behind it."""
        return f"{self.number:06d}-{self.id}-{step.number:06d}"

    @property
    def parts(self) -> list[str]:
        """Names of everything it records."""
        return [self.part(step) for step in self.steps]


def load_data(spec: RunSpec) -> Data:
    """Read the benchmarks of a run, and keep the probes that it asks.

    Of several benchmarks, ids of cases begin with the name of theirs.

    Raises:
        MissingData (CG604), MalformedRecords (CG603), WrongChecksum (CG605): as `Benchmark.load`.
    """
    cases: list[Case] = []
    counts: dict[str, object] = {}
    files: list[dict[str, object]] = []
    several = len(spec.benchmark) > 1
    for one in spec.benchmark:
        loaded = _load(one)
        title = f"{one.name} ({one.options['part']})" if "part" in one.options else one.name
        skipped = Counter(loaded.skipped)
        for case in loaded:
            prepared = _asked(add_surroundings(case, spec.ask.surroundings, skipped), spec)
            cases.append(_named(prepared, title) if several else prepared)
        counts[title] = {
            "counts": dict(loaded.counts),
            "dropped": dict(loaded.dropped),
            "skipped": dict(skipped),
        }
        files += [file._asdict() for file in loaded.files]
    return Data(tuple(cases), counts, files)


def training_facts(data: DataSpec) -> list[Fact]:
    """Facts of a benchmark as a training set: with their paraphrases and neighbours.

    Raises:
        MissingData (CG604), MalformedRecords (CG603), WrongChecksum (CG605): as `Benchmark.load`.
    """
    return [fact for case in _load(data) for fact in _with_prompts(case)]


def units(spec: RunSpec, cases: Sequence[Case]) -> tuple[Unit, ...]:
    """The units of a run, in the order in which they are recorded."""
    regime = spec.regime
    ordered = list(cases)
    if regime.kind == "mix":
        random.Random(f"mix/{spec.seed}").shuffle(ordered)
    portions = [*_portions(ordered, _length(regime, len(ordered)))]
    return tuple(
        Unit(
            number=number,
            cases=tuple(portion),
            size=regime.size if regime.kind != "single" else 1,
            in_sequence=regime.in_sequence,
            checkpoints=regime.checkpoints if regime.in_sequence else (),
        )
        for number, portion in enumerate(portions)
    )


def blocks(spec: RunSpec, cases: Sequence[Case]) -> tuple[Block, ...]:
    """Questions to the unedited model, in portions that are asked and kept together."""
    found = [
        tuple(dict.fromkeys(question for case in some for question in questions_of(spec, case)))
        for some in _portions(cases, _CASES_ASKED_TOGETHER)
    ]
    texts = _portions(health_questions(spec), _TEXTS_ASKED_TOGETHER)
    return (*filter(None, found), *map(tuple, texts))


def questions_of(spec: RunSpec, case: Case) -> list[Question]:
    """What the probes of a case ask, in their order."""
    return [question_of(probe, spec.ask.max_new_tokens) for probe in case.probes]


def health_questions(spec: RunSpec) -> Block:
    """Texts whose perplexity is taken, and items of other tasks."""
    texts = [text_question(text) for text in texts_of(spec.health)]
    return tuple(dict.fromkeys([*texts, *(one.question for one in items_of(spec.health))]))


def due(case: Case, rounds: int) -> Iterator[tuple[int, Probe]]:
    """Probes of a case that are asked after some of its rounds, with their places.

    After 0 rounds: those that only the unedited model is asked.
    """
    last = len(case.edits)
    for index, probe in enumerate(case.probes):
        only_before = probe.role == CONDITION or probe.after == (0,)
        if only_before:
            if rounds == 0:
                yield index, probe
        elif rounds and rounds in (probe.after or (last,)):
            yield index, probe


def is_among(role: str, wanted: Iterable[str]) -> bool:
    """Whether a role, or its family, is listed.

    Example:
        >>> is_among("locality/neighborhood", ["locality"]), is_among("localities", ["locality"])
        (True, False)
    """
    return any(role == one or role.startswith(f"{one}/") for one in wanted)


def digest_of(content: object) -> str:
    """Sixteen hexadecimal digits for plain values and records of them."""
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def _load(data: DataSpec) -> LoadedBenchmark:
    return BENCHMARKS.get(data.name)(**data.options).load(data.path, limit=data.limit)


def _asked(case: Case, spec: RunSpec) -> Case:
    ask = spec.ask
    kept = tuple(
        probe
        for probe in case.probes
        if probe.role == CONDITION
        or (
            (not ask.roles or is_among(probe.role, ask.roles))
            and not is_among(probe.role, ask.without)
        )
    )
    case = dataclasses.replace(case, probes=kept)
    return case.under(*ask.protocols) if ask.protocols else case


def _named(case: Case, benchmark: str) -> Case:
    meta: Mapping[str, object] = {**case.meta, "benchmark": benchmark}
    return dataclasses.replace(case, id=f"{benchmark}: {case.id}", meta=meta)


def _with_prompts(case: Case) -> list[Fact]:
    if len(case.facts) > 1:
        return list(case.facts)
    return [
        dataclasses.replace(
            fact,
            paraphrases=_prompts(case, "generalization"),
            neighbours=_prompts(case, "locality"),
        )
        for fact in case.facts
    ]


def _prompts(case: Case, family: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(probe.prompt for probe in case.probes if probe.family == family))


def _length(regime: Regime, count: int) -> int:
    if regime.kind == "single":
        return 1
    return regime.size if regime.kind == "batch" else regime.length or max(1, count)


def _portions(whole: Sequence[Element], size: int) -> Iterator[Sequence[Element]]:
    for begin in range(0, len(whole), size):
        yield whole[begin : begin + size]
