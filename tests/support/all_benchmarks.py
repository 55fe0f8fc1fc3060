"""One look-alike file of every benchmark, with every part and option that adds probes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from corrigenda import benchmarks
from corrigenda.benchmarks.benchmark import LoadedBenchmark
from tests.support.newer_records import (
    AKEW,
    HALLU,
    OWN,
    PEAK,
    QAEDIT,
    REMASTERED,
    TAXI,
    UNKE,
    WIKIBIGEDIT,
    WISE,
    WISE_TEMPORAL,
)
from tests.support.records import (
    COMPOSITE,
    CONFLICT_PROMPTS,
    CONVSENT,
    COUNTERFACT,
    COUNTERFACT_WIKI,
    COVERAGE,
    FLAT,
    KLOB,
    MQUAKE,
    RECENT,
    REVERSE,
    RIPPLE,
    ROUND,
    ROUND_PROMPTS,
    SANITATION,
    TRIVIA_TEST,
    TRIVIA_TRAIN,
    WIKIBIO,
    ZSRE,
    ZSRE_WIKI,
    changed,
    query,
    ripple_test,
    write,
)

SNIPPETS = [
    {
        "relation_id": "P30",
        "target_id": "Q48",
        "samples": [
            {"name": "Laos", "text": "Laos is a country of Asia."},
            {"name": "Mongolia", "text": "Mongolia lies in the east of Asia."},
        ],
    },
    {
        "relation_id": "P30",
        "target_id": "Q15",
        "samples": [{"name": "Mount Vero", "text": "Mount Vero is a mountain of Africa."}],
    },
]
"""Reference texts of CounterFact's record."""


def load_all(folder: Path) -> Iterator[LoadedBenchmark]:
    """Load every benchmark; of one with several parts, each that has other probes."""
    single = {
        "counterfact-flat": FLAT,
        "counterfact-plus": COUNTERFACT,
        "knowedit-counterfact": COUNTERFACT_WIKI,
        "knowedit-recent": RECENT,
        "knowedit-wikibio": WIKIBIO,
        "knowedit-zsre": ZSRE_WIKI,
        "rippleedits": changed(
            RIPPLE,
            Compositionality_II=[ripple_test(query("The child of Ada Quill is", [["Eva"]]))],
        ),
        "zsre": ZSRE,
    }
    for name, record in single.items():
        yield benchmarks.load(name, write(folder / name / "records.json", [record]))
    newer = {
        "qaedit": QAEDIT,
        "unke": UNKE,
        "akew": AKEW,
        "taxi": TAXI,
        "peak": PEAK,
        "wise": WISE,
        "mquake-remastered": REMASTERED,
        "cases": OWN,
    }
    for name, records in newer.items():
        yield benchmarks.load(name, write(folder / name / "records.json", records))
    yield benchmarks.load("hallueditbench", write(folder / "hallu" / "all.jsonl", HALLU), turns=2)
    yield benchmarks.load("wikibigedit", write(folder / "big" / "step.json", WIKIBIGEDIT[:1]))
    yield benchmarks.load(
        "wise", write(folder / "wise" / "temporal.json", [WISE_TEMPORAL]), part="temporal"
    )
    yield benchmarks.load(
        "knowedit-convsent", write(folder / "convsent" / "blender_test.json", CONVSENT)
    )
    write(folder / "counterfact" / "counterfact.json", [COUNTERFACT])
    write(folder / "counterfact" / "attribute_snippets.json", SNIPPETS)
    yield benchmarks.load("counterfact", folder / "counterfact", attributes=True, texts=True)
    write(folder / "trivia" / "trivia_qa_train.json", TRIVIA_TRAIN)
    write(folder / "trivia" / "trivia_qa_test.json", TRIVIA_TEST)
    yield benchmarks.load("knowedit-sanitation", folder / "trivia")
    for name, records in SANITATION.items():
        write(folder / "sanitation" / name, records)
    yield benchmarks.load("sanitation", folder / "sanitation", fluency=True)
    path = write(folder / "mquake" / "records.json", [MQUAKE])
    (path.parent / "multihop-prompts.txt").write_text("Q: One? A: Two\n")
    (path.parent / "multihop-cot-prompts.txt").write_text("Question: One?\nAnswer: Two\n")
    yield benchmarks.load("mquake", path)
    write(folder / "conflict" / "conflict_prompts.json", CONFLICT_PROMPTS)
    path = write(folder / "conflict" / "records.json", [REVERSE, COMPOSITE, COVERAGE])
    yield benchmarks.load("conflictedit", path, alone=True)
    write(folder / "round" / "round_prompts.json", ROUND_PROMPTS)
    yield benchmarks.load("roundedit", write(folder / "round" / "records.json", [ROUND]))
    for part, records in KLOB.items():
        path = write(folder / "klob" / f"KLoB-{part}.jsonl", records)
        yield benchmarks.load("klob", path, part=part)
    parts = ("modification", "insertion", "erasure", "coverage", "reverse", "composite", "round")
    for part in parts:
        yield benchmarks.load("pocketedit", part=part, size=2, world="small")
