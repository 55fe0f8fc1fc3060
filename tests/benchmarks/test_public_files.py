"""Every public file at hand is read, and holds as many records as its list says."""

from __future__ import annotations

from pathlib import Path

import pytest

from corrigenda import benchmarks

DATA = Path(__file__).parents[3] / "shared" / "data"

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="files of public benchmarks are not part of this repository"
)

# Records of each file, and the part of the benchmark it is.
FILES = [
    ("counterfact/counterfact.json", "counterfact", ""),
    ("counterfact/counterfact.json", "counterfact-plus", ""),
    ("counterfact/easyedit/counterfact-edit.json", "counterfact-flat", "edit"),
    ("counterfact/easyedit/counterfact-train.json", "counterfact-flat", "train"),
    ("knowedit/WikiBio/wikibio-train-all.json", "knowedit-wikibio", "train"),
    ("knowedit/ZsRE/ZsRE-test-all.json", "knowedit-zsre", "test"),
    ("knowedit/wiki_counterfact/train_cf.json", "knowedit-counterfact", "train"),
    ("knowedit/wiki_recent/recent_train.json", "knowedit-recent", "train"),
    ("mquake/MQuAKE-CF_354.json", "mquake", ""),
    ("pitfalls/GPT2-XL/composite_edit.json", "conflictedit", "composite"),
    ("pitfalls/GPT2-XL/coverage_edit.json", "conflictedit", "coverage"),
    ("pitfalls/GPT2-XL/reverse_edit.json", "conflictedit", "reverse"),
    ("pitfalls/GPT2-XL/easy.json", "roundedit", "easy"),
    ("pitfalls/GPT2-XL/hard.json", "roundedit", "hard"),
    ("rippleedits/random_raw_sample_4.json", "rippleedits", "random"),
    ("zsre/zsre_mend_eval_portability_gpt4.json", "zsre", "portability"),
    ("zsre/zsre_mend_train_1k.json", "zsre", "train"),
    ("mquake/MQuAKE-CF_354.json", "akew", "mquake-cf"),
    ("unstructured/QAEdit_inter_1k.json", "qaedit", "1k"),
    ("unstructured/UnKE_final_data_v2.json", "unke", "v2"),
    ("hallueditbench/llama_2_7b_chat_questions.jsonl", "hallueditbench", ""),
    ("peak/PEAK_counter.json", "peak", "counterfactual"),
    ("wise/hallucination/hallucination-edit.json", "wise", "hallucination"),
    ("wise/temporal/temporal-edit.json", "wise", "temporal"),
]

# Two questions have no alternative answer.
DROPPED = {"zsre/zsre_mend_train_1k.json": {"the prompt or the target is empty": 2}}


def listed() -> dict[str, int]:
    """Number of records by file, from the table of the data's own README."""
    rows = (
        line.split("|")
        for line in (DATA / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    )
    numbers = {row[1].strip(" `"): row[2].strip().replace(",", "") for row in rows}
    return {name: int(count) for name, count in numbers.items() if count.isdecimal()}


@pytest.mark.parametrize(
    ("file", "name", "part"), FILES, ids=[f"{one[1]}-{one[0]}" for one in FILES]
)
def test_file_holds_what_is_listed(file: str, name: str, part: str) -> None:
    loaded = (
        benchmarks.load(name, DATA / file, part=part)
        if part
        else benchmarks.load(name, DATA / file)
    )
    assert loaded.counts["records"] == listed()[file]
    assert loaded.dropped == DROPPED.get(file, {})
    cases = {case.id.removesuffix("/alone") for case in loaded}
    assert len(cases) == listed()[file] - sum(loaded.dropped.values())
    texts = ("essence", "unseen_text")
    probes = [probe for case in loaded for probe in case.probes if probe.role not in texts]
    assert all(probe.prompt for probe in probes)
    assert loaded.files[0].name == Path(file).name


def test_sanitation_files_are_read_together() -> None:
    loaded = benchmarks.load("sanitation", DATA / "sanitation")
    names = ("train", "dev_forget", "dev_keep", "test_forget")
    assert loaded.counts["records"] == sum(listed()[f"sanitation/{one}.jsonl"] for one in names)
    assert len(loaded) == 50
    assert {len(case.facts) for case in loaded} == {16}


def test_taxi_has_a_case_an_edit() -> None:
    loaded = benchmarks.load("taxi", DATA / "taxi" / "edits-evaluation.jsonl")
    assert loaded.counts["records"] == listed()["taxi/edits-evaluation.jsonl"]
    assert (len(loaded), loaded.dropped, loaded.skipped) == (568, {}, {})
    assert loaded.counts["property/unchanged"] == 365


def test_every_field_is_read_or_counted() -> None:
    """The fields of a file are those of its records; what no loader reads is counted."""
    read = {
        "qaedit": {},
        "unke": {},
        "peak": {},
        "hallueditbench": {"eval_llama_2_7b_chat_hf": 1136},
        "taxi": dict.fromkeys(
            ("index", "edit_type", "orig_answer_fwd", "orig_answer_rev", "foil1", "foil2", "foil3"),
            2780,
        ),
    }
    files = {one[1]: one[0] for one in FILES} | {"taxi": "taxi/edits-evaluation.jsonl"}
    for name, unread in read.items():
        assert benchmarks.load(name, DATA / files[name]).unknown_fields == unread, name


def test_counts_of_the_cards() -> None:
    wiki = benchmarks.load("knowedit-counterfact", DATA / "knowedit", part="train")
    assert wiki.flagged["the target is among the old answers"] == 6
    assert wiki.counts["portability/subject_aliasing"] == 1410
    # The first answer of most of these items is the very object they exclude.
    recent = benchmarks.load("knowedit-recent", DATA / "knowedit", part="train")
    left_out = recent.skipped["locality/forgetfulness: the only answer is the one excluded"]
    assert 0.4 < left_out / (left_out + recent.counts["locality/forgetfulness"]) < 0.6
    composite = benchmarks.load(
        "conflictedit",
        DATA / "pitfalls",
        part="composite",
    )
    assert composite.counts["conflict/tied"] == 11 * 2000
    zsre = benchmarks.load("zsre", DATA / "zsre", part="portability", direction="truth")
    assert "portability/one_hop" not in zsre.counts


def test_mquake_uses_the_examples_of_a_relation(tmp_path: Path) -> None:
    (tmp_path / "rel-prompts.json").write_bytes(
        (DATA / "mquake" / "official_rel-prompts.json").read_bytes()
    )
    (tmp_path / "mquake.json").write_bytes((DATA / "mquake" / "MQuAKE-CF_354.json").read_bytes())
    loaded = benchmarks.load("mquake", tmp_path / "mquake.json")
    chains = [
        probe for case in loaded for probe in case.probes if probe.role == "portability/chain"
    ]
    assert sum(probe.prompt.count("\nQ: ") == 8 for probe in chains) > len(chains) / 3
