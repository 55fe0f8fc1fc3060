"""Plan of a run: cases and a regime become units of work, in a fixed order."""

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
from corrigenda.errors import NoCases
from corrigenda.facts import Fact
from corrigenda.run.health import make_text_query, read_texts
from corrigenda.run.queries import Query, make_query
from corrigenda.run.spec import DataSpec, Regime, RunSpec
from corrigenda.run.tasks import items_of

CONDITION = "condition"
"""Role of probes that only the unedited model is asked, and that decide whether others count."""

QueryBlock = tuple[Query, ...]
"""Queries to the unedited model that are asked and stored together."""

Element = TypeVar("Element")

_CASES_ASKED_TOGETHER = 64
_TEXTS_ASKED_TOGETHER = 1024


class RunData(NamedTuple):
    """Cases of the benchmarks of a run, with counts and files.

    Attributes:
        cases: All cases, their probes as they are asked.
        counts: Of each benchmark: `counts`; by reason, records `dropped`, probes `skipped`, and
            cases `flagged`, which need care; and `unknown_fields` of records.
        files: Files that were read, with their checksums.
    """

    cases: tuple[Case, ...]
    counts: dict[str, dict[str, dict[str, int]]]
    files: list[dict[str, object]]

    def digest(self) -> str:
        """Return a hash of all cases, in order."""
        return hash_content(self.cases)


class UnitStep(NamedTuple):
    """One edit of a unit, and which cases are asked after it.

    Attributes:
        number: From 0.
        cases: Cases that are edited in it.
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

    @property
    def rounds(self) -> int:
        """Number of rounds of its cases."""
        return max(len(case.edits) for case in self.cases)


@dataclass(frozen=True)
class Unit:
    """Work that depends on the unedited model alone: a case, a batch, or a whole sequence.

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
        return hash_content((self.cases, self.size, self.in_sequence, self.checkpoints))

    @property
    def label(self) -> str:
        """Its name in measurements."""
        if self.in_sequence:
            return f"sequence {self.number}"
        return self.cases[0].id if len(self.cases) == 1 else f"batch {self.number}"

    @property
    def steps(self) -> Iterator[UnitStep]:
        """Iterate over its edits."""
        for number, begin in enumerate(range(0, len(self.cases), self.size)):
            cases = self.cases[begin : begin + self.size]
            end = begin + len(cases)
            last = end == len(self.cases)
            again = any(begin < moment <= end for moment in self.checkpoints)
            yield UnitStep(number, cases, begin, self.in_sequence, last or again)

    def part(self, step: UnitStep) -> str:
        """Return the name of the part that a step records; later steps and units sort after it."""
        return f"{self.number:06d}-{self.id}-{step.number:06d}"

    @property
    def parts(self) -> list[str]:
        """Names of all its parts."""
        return [self.part(step) for step in self.steps]


def load_data(spec: RunSpec) -> RunData:
    """Read the benchmarks of a run, with the probes that it asks.

    Of several benchmarks, ids of cases begin with the name of theirs.

    Raises:
        MissingData (CG604), MalformedRecords (CG603), WrongChecksum (CG605): as `Benchmark.load`.
        NoCases (CG607): no benchmark has a case that can be used, or no case a probe that is asked.
    """
    cases: list[Case] = []
    counts: dict[str, dict[str, dict[str, int]]] = {}
    files: list[dict[str, object]] = []
    several = len(spec.benchmark) > 1
    for one in spec.benchmark:
        loaded = _load_benchmark(one)
        title = f"{one.name} ({one.options['part']})" if "part" in one.options else one.name
        skipped = Counter(loaded.skipped)
        for case in loaded:
            prepared = _select_probes(add_surroundings(case, spec.ask.surroundings, skipped), spec)
            cases.append(_add_benchmark_name(prepared, title) if several else prepared)
        counts[title] = {
            "counts": dict(loaded.counts),
            "dropped": dict(loaded.dropped),
            "skipped": dict(skipped),
            "flagged": dict(loaded.flagged),
            "unknown_fields": dict(loaded.unknown_fields),
        }
        files += [file._asdict() for file in loaded.files]
    found = RunData(tuple(cases), counts, files)
    _require_probes(found, spec)
    return found


def load_training_facts(data: DataSpec) -> list[Fact]:
    """Return the facts of a benchmark as a training set, with paraphrases and neighbours.

    Raises:
        MissingData (CG604), MalformedRecords (CG603), WrongChecksum (CG605): as `Benchmark.load`.
    """
    return [fact for case in _load_benchmark(data) for fact in _add_prompts(case)]


def plan_units(spec: RunSpec, cases: Sequence[Case]) -> tuple[Unit, ...]:
    """Return the units of a run, in the order in which they are recorded."""
    regime = spec.regime
    ordered = list(cases)
    if regime.kind == "mix":
        random.Random(f"mix/{spec.seed}").shuffle(ordered)
    portions = [*_split(ordered, _unit_length(regime, len(ordered)))]
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


def plan_queries(spec: RunSpec, cases: Sequence[Case]) -> tuple[QueryBlock, ...]:
    """Return the queries to the unedited model, in blocks that are asked and stored together."""
    found = [
        tuple(dict.fromkeys(query for case in some for query in list_queries(spec, case)))
        for some in _split(cases, _CASES_ASKED_TOGETHER)
    ]
    texts = _split(list_health_queries(spec), _TEXTS_ASKED_TOGETHER)
    return (*filter(None, found), *map(tuple, texts))


def list_queries(spec: RunSpec, case: Case) -> list[Query]:
    """Return what the probes of a case ask, in their order."""
    ask = spec.ask
    return [
        make_query(probe, ask.max_new_tokens, chat=ask.chat, natural=ask.natural)
        for probe in case.probes
    ]


def list_health_queries(spec: RunSpec) -> QueryBlock:
    """Return the texts whose perplexity is taken, and the items of other tasks."""
    texts = [make_text_query(text) for text in read_texts(spec.health)]
    return tuple(dict.fromkeys([*texts, *(one.question for one in items_of(spec.health))]))


def list_due(case: Case, rounds: int) -> Iterator[tuple[int, Probe]]:
    """Yield the probes of a case that are asked after some of its rounds, with their places.

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


def matches_role(role: str, wanted: Iterable[str]) -> bool:
    """Return whether a role, or its family, is listed.

    Example:
        >>> [matches_role(role, ["locality"]) for role in ("locality/neighborhood", "localities")]
        [True, False]
    """
    return any(role == one or role.startswith(f"{one}/") for one in wanted)


def hash_content(content: object) -> str:
    """Return sixteen hexadecimal digits for plain values and records of them."""
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def _require_probes(data: RunData, spec: RunSpec) -> None:
    """Refuse a run whose table would be empty.

    Raises:
        NoCases (CG607): it would.
    """
    if not data.cases:
        losses = [_describe_losses(title, counts) for title, counts in data.counts.items()]
        raise NoCases(
            f"{'; '.join(losses)}.",
            where=", ".join(one.path for one in spec.benchmark if one.path),
            hint="Check that the file is the one of this benchmark; `corrigenda benchmarks` shows "
            "what it holds.",
        )
    health = spec.health.texts or spec.health.file or spec.health.tasks
    if not health and all(one.role == CONDITION for case in data.cases for one in case.probes):
        asked = f"ask.roles = {[*spec.ask.roles]}, ask.without = {[*spec.ask.without]}"
        raise NoCases(
            f"no probe of {len(data.cases)} cases is asked.",
            where=asked,
            hint="Name roles, or families of roles, that the benchmark has.",
        )


def _describe_losses(title: str, counts: Mapping[str, Mapping[str, int]]) -> str:
    """Return what became of the records of a benchmark without cases."""
    reasons = ", ".join(f"{count} x {reason}" for reason, count in counts["dropped"].items())
    read = f"{counts['counts']['records']} records read"
    return f"{title} has no case that can be used: {read}" + (f", {reasons}" if reasons else "")


def _load_benchmark(data: DataSpec) -> LoadedBenchmark:
    return BENCHMARKS.get(data.name)(**data.options).load(
        data.path, limit=data.limit, seed=data.seed
    )


def _select_probes(case: Case, spec: RunSpec) -> Case:
    ask = spec.ask
    selected = tuple(
        probe
        for probe in case.probes
        if probe.role == CONDITION
        or (
            (not ask.roles or matches_role(probe.role, ask.roles))
            and not matches_role(probe.role, ask.without)
        )
    )
    case = dataclasses.replace(case, probes=selected)
    return case.under(*ask.protocols) if ask.protocols else case


def _add_benchmark_name(case: Case, benchmark: str) -> Case:
    meta: Mapping[str, object] = {**case.meta, "benchmark": benchmark}
    return dataclasses.replace(case, id=f"{benchmark}: {case.id}", meta=meta)


def _add_prompts(case: Case) -> list[Fact]:
    if len(case.facts) > 1:
        return list(case.facts)
    return [
        dataclasses.replace(
            fact,
            paraphrases=_list_prompts(case, "generalization"),
            neighbours=_list_prompts(case, "locality"),
        )
        for fact in case.facts
    ]


def _list_prompts(case: Case, family: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(probe.prompt for probe in case.probes if probe.family == family))


def _unit_length(regime: Regime, count: int) -> int:
    if regime.kind == "single":
        return 1
    return regime.size if regime.kind == "batch" else regime.length or max(1, count)


def _split(whole: Sequence[Element], size: int) -> Iterator[Sequence[Element]]:
    for begin in range(0, len(whole), size):
        yield whole[begin : begin + size]
