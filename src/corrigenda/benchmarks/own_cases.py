"""Cases of one's own: a facts file with questions, as JSON lines, a JSON list or CSV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, NamedTuple, cast

from corrigenda.benchmarks.aliases import Groups, group_answers
from corrigenda.benchmarks.benchmark import Benchmark, Tally, UnusableRecord, make_cases
from corrigenda.benchmarks.files import BenchmarkFiles
from corrigenda.cases import Against, Case, Probe, Protocol
from corrigenda.errors import MalformedRecords
from corrigenda.fact_records import LISTS, translate
from corrigenda.facts import Fact

ARROW = "=>"
"""In CSV, between a question and its answer; questions of one cell are separated by `|`."""

_FIELDS = frozenset({"prompt", "target", "subject", "subject_start", "before", "separator", "name"})
_QUESTIONS = ("locality", "portability")


class _Question(NamedTuple):
    kind: str
    prompt: str
    expected: Groups


class OwnCases(Benchmark):
    """Facts with what should follow from them and what should stay.

    Attributes:
        protocol: How answers are taken; `ask.protocols` of a recipe asks under several.
    """

    name: ClassVar[str] = "cases"
    headline: ClassVar[tuple[str, ...]] = (
        "reliability@generate:contains",
        "reliability@generate:judge",
        "generalization@generate:contains",
        "generalization@generate:judge",
        "portability@generate:contains",
        "portability@generate:judge",
        "locality@generate:answer",
        "reliability@chat:contains",
        "generalization@chat:contains",
        "portability@chat:contains",
        "locality@chat:answer",
    )
    protocol: Literal["generate", "chat", "greedy", "teacher_forced"] = "generate"

    def read(self, files: BenchmarkFiles, tally: Tally) -> Iterator[Case]:
        """Yield one case a record."""
        path = files.find_main()
        raw = files.read_document(path)
        if isinstance(raw, dict):
            raw = [raw]
        if not isinstance(raw, list):
            raise MalformedRecords("the file holds no list of records.", where=str(path))
        is_table = path.suffix == ".csv"

        def make(index: int, record: object) -> tuple[Case]:
            if not isinstance(record, Mapping):
                raise UnusableRecord("the record is no table of fields")
            plain = cast("Mapping[str, object]", record)
            if is_table:
                cells = {name: cell for name, cell in plain.items() if str(cell).strip()}
                plain = {name: _split_cell(name, cell) for name, cell in cells.items()}
            return (self._make_case(index, plain, files),)

        yield from make_cases(cast("list[object]", raw), make, tally)

    def _make_case(self, index: int, record: Mapping[str, object], files: BenchmarkFiles) -> Case:
        questions = [one for name in _QUESTIONS for one in _read_questions(name, record.get(name))]
        translated = translate({k: v for k, v in record.items() if k not in _QUESTIONS})
        fields = {
            key: value for key, value in translated.fields.items() if key in _FIELDS or key in LISTS
        }
        known = {*fields, "id", "case_id"}
        files.unknown_fields.update((set(translated.fields) | translated.unused) - known)
        if not isinstance(fields.get("prompt"), str) or not isinstance(fields.get("target"), str):
            raise UnusableRecord("there is no prompt, or no target")
        fact = Fact(**fields)  # type: ignore[arg-type]  # names of fields
        right = ((fact.target, *fact.aliases),)
        rivals = (fact.before,) if fact.before else ()
        probes = [self._ask(fact.prompt, right, "reliability", rivals=rivals)]
        probes += [
            self._ask(prompt, right, "generalization", rivals=rivals) for prompt in fact.paraphrases
        ]
        probes += [
            self._ask(prompt, (), f"locality/{kind}", against=Against.UNEDITED)
            for kind, prompts in (
                ("neighbour", fact.neighbours),
                ("same_subject", fact.same_subject),
            )
            for prompt in prompts
        ]
        for kind, prompt, expected in questions:
            kept = kind.startswith("locality")
            against = Against.UNEDITED if kept else Against.TARGET
            probes.append(self._ask(prompt, expected, kind, against=against))
        name = str(record.get("id") or record.get("case_id") or fact.name or index)
        return Case(id=name, facts=(fact,), probes=tuple(probes), meta={"edit": "own"})

    def _ask(
        self,
        prompt: str,
        expected: Groups,
        role: str,
        *,
        against: Against = Against.TARGET,
        rivals: tuple[str, ...] = (),
    ) -> Probe:
        protocol = Protocol(self.protocol)
        if not expected and protocol is Protocol.TEACHER_FORCED:
            # Without an answer there is nothing to feed: what is generated is compared.
            protocol = Protocol.GENERATE
        return Probe(
            prompt=prompt.strip(),
            expected=expected,
            role=role,
            protocol=protocol,
            against=against,
            rivals=rivals,
        )


def _read_questions(family: str, given: object) -> Iterator[_Question]:
    """Yield the questions of a field: texts, tables, or lists of them by kind."""
    if given is None or given == "":
        return
    if isinstance(given, str):
        question, _, answer = given.partition(ARROW)
        yield _check(family, question, answer)
    elif isinstance(given, list):
        for one in cast("list[object]", given):
            yield from _read_questions(family, one)
    elif isinstance(given, Mapping):
        table = cast("Mapping[str, object]", given)
        if "prompt" in table:
            answer = table.get("answer", table.get("target", table.get("ground_truth", "")))
            kind = table.get("kind")
            yield _check(f"{family}/{kind}" if kind else family, table["prompt"], answer)
        else:
            for kind, several in table.items():
                name = family if "/" in family else f"{family}/{kind.lower()}"
                yield from _read_questions(name, several)
    else:
        raise UnusableRecord(f"`{family}` holds no questions")


def _check(family: str, prompt: object, answer: object) -> _Question:
    if not isinstance(prompt, str) or not prompt.strip():
        raise UnusableRecord(f"a question of `{family}` is empty")
    expected: Groups = ()
    if isinstance(answer, str | list):
        expected = group_answers(cast("str", answer))
    if not expected and family.startswith("portability"):
        raise UnusableRecord("a question of `portability` has no answer")
    return _Question(family if "/" in family else f"{family}/question", prompt, expected)


def _split_cell(name: str, cell: object) -> object:
    text = str(cell)
    if name in _QUESTIONS or name in LISTS:
        return [one.strip() for one in text.split("|") if one.strip()]
    return text
