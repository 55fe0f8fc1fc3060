"""The schema that the four fact data sets of KnowEdit share, and the cases made of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.aliases import Answers, Groups, either, objects, same, without
from corrigenda.benchmarks.benchmark import Benchmark, Tally, Unusable, each
from corrigenda.benchmarks.files import Files
from corrigenda.benchmarks.probes import fluency, forced
from corrigenda.cases import Against, Case, Probe
from corrigenda.facts import Fact

_EXCLUDED = re.compile(r"which is not (.+?), is$")


class Item(TypedDict):
    """A prompt and its answer, in one of the three forms that the files use."""

    prompt: str
    ground_truth: Answers


class _Optional(TypedDict, total=False):
    ground_truth: str | list[str] | None
    rephrase_prompt: str | None
    portability: dict[str, list[Item]] | None
    locality: dict[str, list[Item]] | None


class FactRecord(_Optional):
    """A record of WikiData_recent, WikiData_counterfact or ZsRE."""

    subject: str
    prompt: str
    target_new: str


class Parts(NamedTuple):
    """A record in one form, whatever file it came from."""

    subject: str
    prompt: str
    target: str
    before: tuple[str, ...]
    rephrase: str | None
    portability: Mapping[str, Sequence[Item]]
    locality: Mapping[str, Sequence[Item]]


_SCHEMA = TypeAdapter(FactRecord)


class KnowEditFacts(Benchmark):
    """A fact data set of KnowEdit: one edit a record, scored with the answer fed.

    Attributes:
        part: "test" or "train".
    """

    edit: ClassVar[str]

    def read(self, files: Files, tally: Tally) -> Iterator[Case]:
        """Yield one case a record."""
        records = self.parts(files)
        repeated = repeats(one.prompt for one in records)

        def make(index: int, record: Parts) -> tuple[Case]:
            return (knowedit_case(index, record, tally, self.edit, record.prompt in repeated),)

        yield from each(records, make, tally)

    def parts(self, files: Files) -> list[Parts]:
        """Read the records."""
        return [
            Parts(
                subject=record["subject"],
                prompt=record["prompt"],
                target=record["target_new"],
                before=tuple(one for group in objects(record.get("ground_truth")) for one in group),
                rephrase=record.get("rephrase_prompt"),
                portability=record.get("portability") or {},
                locality=record.get("locality") or {},
            )
            for record in files.records(files.main(), _SCHEMA)
        ]


def repeats(texts: Iterator[str]) -> frozenset[str]:
    """Texts that occur more than once."""
    return frozenset(text for text, count in Counter(texts).items() if count > 1)


def knowedit_case(index: int, record: Parts, tally: Tally, edit: str, repeated: bool) -> Case:
    """The case of one record.

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
        raise Unusable("the subject is empty")
    fact = Fact(
        prompt=prompt,
        target=target,
        subject=record.subject,
        before=record.before[0] if record.before else None,
        name=f"record {index}",
    )
    rivals = tuple(one for one in record.before if not same(one, target))
    flags = []
    if any(same(one, target) for one in record.before):
        flags.append("the target is among the old answers")
    if repeated:
        flags.append("another record has the same prompt")
    probes = [forced(prompt, target, "reliability", rivals=rivals)]
    if record.rephrase and record.rephrase.strip():
        probes.append(forced(record.rephrase, target, "generalization", rivals=rivals))
    probes += _items(record.portability, "portability", target, tally)
    probes += _items(record.locality, "locality", target, tally)
    probes.append(fluency(prompt))
    return Case(
        id=str(index),
        facts=(fact,),
        probes=tuple(probes),
        meta={"edit": edit, "flags": tuple(flags)},
    )


def _items(
    kinds: Mapping[str, Sequence[Item]], family: str, target: str, tally: Tally
) -> Iterator[Probe]:
    against = Against.UNEDITED if family == "locality" else Against.TARGET
    for kind, items in kinds.items():
        role = f"{family}/{kind.lower()}"
        for item in items:
            prompt = item["prompt"].strip()
            groups = objects(item["ground_truth"])
            if not (prompt and groups):
                tally.skipped[f"{role}: no answer"] += 1
                continue
            if kind == "Forgetfulness":
                groups = remaining(prompt, groups, target)
                if not groups:
                    tally.skipped[f"{role}: the only answer is the one excluded"] += 1
                    continue
            yield forced(prompt, either(groups), role, against=against)


def remaining(prompt: str, groups: Groups, target: str) -> Groups:
    """Answers to "..., which is not X, is" that are neither X nor what is written."""
    excluded = _EXCLUDED.search(prompt)
    return without(groups, [target, *(excluded.groups() if excluded else ())])
