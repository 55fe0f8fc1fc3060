"""Reference texts of CounterFact: what consistency is compared with, and what essence scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.aliases import drop_repeats
from corrigenda.benchmarks.counterfact.records import RewriteRecord
from corrigenda.benchmarks.files import BenchmarkFiles
from corrigenda.benchmarks.probes import FLUENCY_TOKENS
from corrigenda.cases import Against, Probe, Protocol

SNIPPETS = "attribute_snippets.json"
"""Public name of the file."""

_ESSENCE_WORDS = 70
"""Words of a text about the subject that are scored: about the 100 tokens of the reference."""


class Snippet(TypedDict):
    """A text about something."""

    name: str
    text: str


class _SnippetRecord(TypedDict):
    relation_id: str
    target_id: str
    samples: list[Snippet]


_SCHEMA = TypeAdapter(_SnippetRecord)
Snippets = Mapping[tuple[str, str], Sequence[Snippet]]
"""Texts about what has an object, by relation and object."""


def read_snippets(path: Path, files: BenchmarkFiles) -> Snippets:
    """Read the reference texts.

    Raises:
        MalformedRecords (CG603): the file cannot be read, or has another schema.
    """
    return {
        (one["relation_id"], one["target_id"]): one["samples"]
        for one in files.read_records(path, _SCHEMA)
    }


def text_probes(
    rewrite: RewriteRecord, prompts: Sequence[str], snippets: Snippets
) -> Iterator[Probe]:
    """Yield the probes of consistency, one for each prompt, and of essence; none without texts."""
    relation, subject = rewrite["relation_id"], rewrite["subject"]
    new, true = (
        snippets.get((relation, rewrite[which]["id"]), ())
        for which in ("target_new", "target_true")
    )
    references = drop_repeats(one["text"] for one in new)
    for prompt in prompts if references else ():
        yield Probe(
            prompt=prompt.strip(),
            expected=(references,),
            role="consistency",
            protocol=Protocol.GREEDY,
            max_new_tokens=FLUENCY_TOKENS,
        )
    about = drop_repeats(one["text"] for one in (*new, *true) if one["name"] == subject)
    if about:
        text = " ".join(" ".join(about).split()[:_ESSENCE_WORDS])
        yield Probe(
            prompt="",
            expected=((text,),),
            role="essence",
            protocol=Protocol.TEACHER_FORCED,
            against=Against.UNEDITED,
            separator="",
        )
