"""ConflictEdit, RoundEdit and KLoB."""

from __future__ import annotations

from pathlib import Path

import pytest

from corrigenda import benchmarks
from corrigenda.cases import Against, Case, Protocol
from corrigenda.errors import MissingData
from tests.support.records import (
    COMPOSITE,
    CONFLICT_PROMPTS,
    COVERAGE,
    KLOB,
    REVERSE,
    ROUND,
    ROUND_PROMPTS,
    changed,
    of_role,
    only,
    roles,
    write,
)


def conflicts(tmp_path: Path, *records: dict, **options: object) -> benchmarks.LoadedBenchmark:
    write(tmp_path / "conflict_prompts.json", CONFLICT_PROMPTS)
    path = write(tmp_path / "records.json", list(records))
    return benchmarks.load("conflictedit", path, **options)


def scored(case: Case, role: str) -> list[tuple[str, str | None]]:
    return [(probe.prompt, probe.answer) for probe in of_role(case, role)]


def test_reverse_edits_follow_each_other(tmp_path: Path) -> None:
    case = only(conflicts(tmp_path, REVERSE))
    assert [[fact.prompt for fact in one] for one in case.edits] == [
        ["The father of Ann is"],
        ["The child of Carl is"],
    ]
    assert [fact.target for fact in case.facts] == ["Carl", "Dora"]
    assert scored(case, "conflict/old") == [
        ("The father of Ann is", "Carl"),
        ("Ann was fathered by", "Carl"),
        ("Ann is a child of his(her) father,", "Carl"),
    ]
    assert scored(case, "conflict/new") == [
        ("The child of Carl is", "Dora"),
        ("Carl has a child called", "Dora"),
    ]
    assert scored(case, "conflict/implied")[0] == ("The father of Dora is", "Carl")
    assert {probe.after for probe in of_role(case, "conflict/old")} == {(1, 2)}
    assert {probe.protocol for probe in case.probes} == {Protocol.RANK}
    assert case.meta["kind"] == "reverse"


def test_composite_edits_have_a_tied_fact(tmp_path: Path) -> None:
    case = only(conflicts(tmp_path, COMPOSITE))
    assert scored(case, "conflict/implied")[0] == ("The spouse of Eve is", "Dan")
    assert scored(case, "conflict/tied")[0] == ("The mother of Ann is", "Eve")
    assert scored(case, "conflict/new")[0] == ("The father of Ann is", "Dan")


def test_coverage_edits_are_made_alone_too(tmp_path: Path) -> None:
    both, alone = conflicts(tmp_path, COVERAGE)
    assert roles(both) == {"conflict/old": 3, "conflict/new": 3}
    assert alone.id == f"{both.id}/alone"
    (probe, *_) = of_role(alone, "conflict/single")
    assert (probe.answer, probe.rivals, probe.against) == ("Dan", ("Carl",), Against.BEFORE)
    assert len(alone.facts) == 1
    assert len(conflicts(tmp_path, COVERAGE, alone=False)) == 1


def test_conflicts_need_their_paraphrases(tmp_path: Path) -> None:
    path = write(tmp_path / "records.json", [REVERSE])
    with pytest.raises(MissingData, match=r"conflict_prompts\.json"):
        benchmarks.load("conflictedit", path)
    write(tmp_path / "conflict_prompts.json", {"P40": []})
    loaded = benchmarks.load("conflictedit", path)
    assert loaded.dropped == {"no paraphrases of relation P22": 1}


def test_records_without_two_edits_or_names_are_dropped(tmp_path: Path) -> None:
    nameless = changed(COVERAGE)
    nameless["edits"][0]["subject"]["label"] = ""
    loaded = conflicts(tmp_path, nameless, changed(REVERSE, edits=[]))
    assert loaded.dropped == {"an entity has no name": 1, "there are not two edits": 1}


def test_the_folder_of_a_model_is_told_from_the_other(tmp_path: Path) -> None:
    for model in ("GPT-J", "GPT2-XL"):
        write(tmp_path / model / "conflict_prompts.json", CONFLICT_PROMPTS)
    write(tmp_path / "GPT-J" / "reverse_edit.json", [REVERSE, REVERSE])
    write(tmp_path / "GPT2-XL" / "reverse_edit.json", [REVERSE])
    assert len(benchmarks.load("conflictedit", tmp_path)) == 1
    assert len(benchmarks.load("conflictedit", tmp_path, part="gpt-j/reverse")) == 2
    assert len(benchmarks.load("conflictedit", tmp_path / "GPT2-XL")) == 1
    with pytest.raises(MissingData):
        benchmarks.load("conflictedit", tmp_path / "GPT2-XL", part="gpt-j/reverse")


def rounds(tmp_path: Path, record: dict, **options: object) -> benchmarks.LoadedBenchmark:
    write(tmp_path / "round_prompts.json", ROUND_PROMPTS)
    return benchmarks.load("roundedit", write(tmp_path / "easy.json", [record]), **options)


def test_a_round_comes_back(tmp_path: Path) -> None:
    case = only(rounds(tmp_path, ROUND))
    there, back = case.facts
    assert (there.before, there.target) == (back.target, back.before) == ("Sea", "Moon")
    assert case.rounds == ((0,), (1,))
    assert roles(case) == {
        "round/there": 3,
        "round/back": 3,
        "round/true_object": 6,
        "restoration/edited": 1,
        "restoration/paraphrase": 2,
    }
    assert {probe.after for probe in of_role(case, "restoration/edited")} == {(2,)}
    assert {probe.test for probe in of_role(case, "round/true_object")} == {"Sea", "Sky"}
    (probe, *_) = of_role(case, "round/there")
    assert (probe.answer, probe.rivals, probe.after) == ("Moon", ("Sea",), (1,))


def test_a_round_may_write_every_true_object(tmp_path: Path) -> None:
    case = only(rounds(tmp_path, ROUND, multi_label=True))
    assert case.rounds == ((0,), (1, 2))
    assert [fact.target for fact in case.edits[1]] == ["Sea", "Sky"]


def test_rounds_without_several_true_objects_are_dropped(tmp_path: Path) -> None:
    names = [{"id": "1", "label": "Sky"}, {"id": "2", "label": "Dew"}]
    reason = "the object is not one of several true ones"
    assert rounds(tmp_path, changed(ROUND, true_objects=names)).dropped == {reason: 1}
    names = [{"id": "1", "label": "Sea"}, {"id": "2", "label": "Moon"}]
    reason = "the object in between is a true one"
    assert rounds(tmp_path, changed(ROUND, true_objects=names)).dropped == {reason: 1}
    names = [{"id": str(i), "label": one} for i, one in enumerate(("Sea", "Sky", "Sky"))]
    loaded = rounds(tmp_path, changed(ROUND, true_objects=names))
    assert loaded.flagged == {"a true object is listed twice": 1}
    assert only(loaded).meta["true_objects"] == 2


@pytest.mark.parametrize(
    ("part", "suffix", "found", "dropped"),
    [
        ("c", "json", {"locating/consistency": 2}, 1),
        ("c", "jsonl", {"locating/consistency": 2}, 1),
        ("r", "jsonl", {"locating/relevance_single": 2, "locating/relevance_chain": 1}, 0),
        ("u", "jsonl", {"locating/unbiasedness": 1}, 1),
    ],
)
def test_klob_has_prompts_without_edits(
    tmp_path: Path, part: str, suffix: str, found: dict[str, int], dropped: int
) -> None:
    path = write(tmp_path / f"KLoB-{part}.{suffix}", KLOB[part])
    loaded = benchmarks.load("klob", path, part=part)
    case = only(loaded)
    assert case.facts == ()
    assert roles(case) == found
    assert sum(loaded.dropped.values()) == dropped
    assert not any(probe.prompt.endswith("_") for probe in case.probes)


def test_klob_reads_both_spellings(tmp_path: Path) -> None:
    (record,) = KLOB["r"]
    corrected = {key.replace("knowlege", "knowledge"): value for key, value in record.items()}
    path = write(tmp_path / "r.json", [record, corrected])
    first, second = benchmarks.load("klob", path, part="r")
    assert first.probes == second.probes
