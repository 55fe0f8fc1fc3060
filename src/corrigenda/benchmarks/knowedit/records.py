"""The schema of the four fact data sets of KnowEdit, and the cases made of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple, cast

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.aliases import (
    Answers,
    Groups,
    exclude_names,
    group_answers,
    is_same_name,
    merge_groups,
)
from corrigenda.benchmarks.benchmark import Benchmark, Tally, UnusableRecord, make_cases
from corrigenda.benchmarks.files import BenchmarkFiles, validate_records
from corrigenda.benchmarks.probes import make_fluency_probe, make_forced_probe
from corrigenda.cases import Against, Case, Probe
from corrigenda.errors import MalformedRecords
from corrigenda.facts import Fact

_EXCLUDED = re.compile(r"which is not (.+?), is$")


class KnowEditItem(TypedDict):
    """Prompt with its answers, in one of the three forms that the files use."""

    prompt: str
    ground_truth: Answers


class _KnowEditOptional(TypedDict, total=False):
    ground_truth: str | list[str] | None
    rephrase_prompt: str | None
    portability: dict[str, list[KnowEditItem]] | None
    locality: dict[str, list[KnowEditItem]] | None


class KnowEditRecord(_KnowEditOptional):
    """Record of WikiData_recent, WikiData_counterfact or ZsRE."""

    subject: str
    prompt: str
    target_new: str


class KnowEditFact(NamedTuple):
    """Record in one form for all files."""

    subject: str
    prompt: str
    target: str
    before: tuple[str, ...]
    rephrase: str | None
    portability: Mapping[str, Sequence[KnowEditItem]]
    locality: Mapping[str, Sequence[KnowEditItem]]


_SCHEMA = TypeAdapter(KnowEditRecord)


class KnowEditFacts(Benchmark):
    """Fact data set of KnowEdit: one edit a record, scored under teacher forcing.

    Attributes:
        part: "test" or "train".
    """

    edit: ClassVar[str]

    def read(self, files: BenchmarkFiles, tally: Tally) -> Iterator[Case]:
        """Yield one case a record."""
        records = self.read_facts(files)
        repeated = find_repeats(one.prompt for one in records)

        def make(index: int, record: KnowEditFact) -> tuple[Case]:
            return (make_knowedit_case(index, record, tally, self.edit, record.prompt in repeated),)

        yield from make_cases(records, make, tally)

    def read_facts(self, files: BenchmarkFiles) -> list[KnowEditFact]:
        """Read the records, in the published form or in those of other programs."""
        return [
            KnowEditFact(
                subject=record["subject"],
                prompt=record["prompt"],
                target=record["target_new"],
                before=tuple(
                    one for group in group_answers(record.get("ground_truth")) for one in group
                ),
                rephrase=record.get("rephrase_prompt"),
                portability=record.get("portability") or {},
                locality=record.get("locality") or {},
            )
            for record in _read_records(files)
        ]


def _read_records(files: BenchmarkFiles) -> list[KnowEditRecord]:
    path = files.find_main()
    raw = files.read_document(path)
    if not isinstance(raw, list):
        raise MalformedRecords("the file holds no list of records.", where=str(path))
    plain = [flatten_record(one) for one in cast("list[object]", raw)]
    files.count_unknown(plain, _SCHEMA)
    return validate_records(plain, _SCHEMA, where=str(path))


def flatten_record(record: object) -> object:
    """Return a record in the published form.

    Two others are read: that of programs which nest the edit as CounterFact does
    (`requested_rewrite`, `paraphrase_prompts`), and that of EasyEdit's own loaders, whose questions
    of a kind are two lists, `{"prompt": [...], "ground_truth": [...]}`.
    """
    if not isinstance(record, Mapping):
        return record
    fields = dict(cast("Mapping[str, object]", record))
    rewrite = fields.pop("requested_rewrite", None)
    if isinstance(rewrite, list) and rewrite:
        rewrite = cast("list[object]", rewrite)[0]
    if isinstance(rewrite, Mapping):
        inner = cast("Mapping[str, object]", rewrite)
        subject, prompt = str(inner.get("subject", "")), str(inner.get("prompt", ""))
        fields |= {
            "subject": subject,
            "prompt": prompt.replace("{}", subject),
            "target_new": _read_text(inner.get("target_new")),
            "ground_truth": _read_text(inner.get("target_true")),
        }
        paraphrases = fields.pop("paraphrase_prompts", None)
        if isinstance(paraphrases, list) and paraphrases:
            fields["rephrase_prompt"] = cast("list[object]", paraphrases)[0]
    for family in ("portability", "locality"):
        if isinstance(kinds := fields.get(family), Mapping):
            table = cast("Mapping[str, object]", kinds)
            fields[family] = {kind: _join_lists(items) for kind, items in table.items()}
    return fields


def _read_text(value: object) -> object:
    return cast("Mapping[str, object]", value).get("str") if isinstance(value, Mapping) else value


def _join_lists(items: object) -> object:
    """Return questions with their answers, where these are two lists or one of each."""
    if not isinstance(items, Mapping):
        return items
    table = cast("Mapping[str, object]", items)
    prompts, answers = table.get("prompt"), table.get("ground_truth")
    if isinstance(prompts, str):
        return [{"prompt": prompts, "ground_truth": answers}]
    if not (isinstance(prompts, list) and isinstance(answers, list)):
        return items
    pairs = zip(cast("list[object]", prompts), cast("list[object]", answers), strict=False)
    return [{"prompt": prompt, "ground_truth": answer} for prompt, answer in pairs]


def find_repeats(texts: Iterator[str]) -> frozenset[str]:
    """Return the texts that occur more than once."""
    return frozenset(text for text, count in Counter(texts).items() if count > 1)


def make_knowedit_case(
    index: int, record: KnowEditFact, tally: Tally, edit: str, repeated: bool
) -> Case:
    """Make the case of one record.

    Args:
        index: Place of the record in its file; the case is named after it.
        record: The record.
        tally: Where probes that are left out are counted.
        edit: Kind of edit: insertion or modification.
        repeated: Whether another record has the same prompt.
    """
    target = record.target.strip()
    prompt = record.prompt.strip()
    if not record.subject.strip():
        raise UnusableRecord("the subject is empty")
    fact = Fact(
        prompt=prompt,
        target=target,
        subject=record.subject,
        before=record.before[0] if record.before else None,
        name=f"record {index}",
    )
    rivals = tuple(one for one in record.before if not is_same_name(one, target))
    flags = []
    if any(is_same_name(one, target) for one in record.before):
        flags.append("the target is among the old answers")
    if repeated:
        flags.append("another record has the same prompt")
    probes = [make_forced_probe(prompt, target, "reliability", rivals=rivals)]
    if record.rephrase and record.rephrase.strip():
        probes.append(make_forced_probe(record.rephrase, target, "generalization", rivals=rivals))
    probes += _make_kind_probes(record.portability, "portability", target, tally)
    probes += _make_kind_probes(record.locality, "locality", target, tally)
    probes.append(make_fluency_probe(prompt))
    return Case(
        id=str(index),
        facts=(fact,),
        probes=tuple(probes),
        meta={"edit": edit, "flags": tuple(flags)},
    )


def _make_kind_probes(
    kinds: Mapping[str, Sequence[KnowEditItem]], family: str, target: str, tally: Tally
) -> Iterator[Probe]:
    against = Against.UNEDITED if family == "locality" else Against.TARGET
    for kind, items in kinds.items():
        role = f"{family}/{kind.lower()}"
        for item in items:
            prompt = item["prompt"].strip()
            groups = group_answers(item["ground_truth"])
            if not (prompt and groups):
                tally.skipped[f"{role}: no answer"] += 1
                continue
            if kind == "Forgetfulness":
                groups = drop_excluded(prompt, groups, target)
                if not groups:
                    tally.skipped[f"{role}: the only answer is the one excluded"] += 1
                    continue
            yield make_forced_probe(prompt, merge_groups(groups), role, against=against)


def drop_excluded(prompt: str, groups: Groups, target: str) -> Groups:
    """Return the answers to "..., which is not X, is" that are neither X nor the target."""
    excluded = _EXCLUDED.search(prompt)
    return exclude_names(groups, [target, *(excluded.groups() if excluded else ())])
