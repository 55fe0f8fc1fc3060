"""A fix of the pocket model: every line accounted for, facts true, files written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import corrigenda as cg
from corrigenda.errors import BadConfig
from corrigenda.fixing.card import CARD, FATES, PATCH, list_left, write_files
from corrigenda.fixing.fix import FixResult
from corrigenda.fixing.lines import FactLine
from corrigenda.fixing.retries import move_layers
from corrigenda.fixing.search import (
    Approach,
    EditMaker,
    SearchTrial,
    list_approaches,
    search,
    strengthen,
)
from corrigenda.fixing.understanding import Fate, understand
from corrigenda.fixing.undoing import take_out
from corrigenda.lm.model import LanguageModel

FATE_OF_LINE = {
    2: Fate.CORRECTED,
    3: Fate.HELD,
    4: Fate.UNREADABLE,
    5: Fate.DUPLICATE,
    6: Fate.CONTRADICTION,
    7: Fate.UNREADABLE,
    8: Fate.CORRECTED,
    9: Fate.CORRECTED,
}


def test_every_line_has_its_fate(fixed: FixResult) -> None:
    assert {one.number: one.fate for one in fixed.lines} == FATE_OF_LINE
    reasons = {one.number: one.reason for one in fixed.lines}
    assert reasons[5] == "the same as line 2"
    assert reasons[6] == 'line 2 says "Rome"'
    assert "CG103" in reasons[7]
    assert not fixed.succeeded
    assert repr(fixed).startswith("8 lines: 3 corrected, 1 already true, 1 duplicate")


def test_corrections_are_true_with_the_patch_only(pocket: LanguageModel, fixed: FixResult) -> None:
    assert fixed.patch is not None
    facts = fixed.facts
    assert [one.subject for one in facts] == ["France", "Mexico", "Austria"]
    said = [cg.answer(pocket, one.prompt).startswith(one.target) for one in facts]
    assert said == [False] * 3
    with fixed.patch.apply(pocket):
        said = [cg.answer(pocket, one.prompt).startswith(one.target) for one in facts]
    assert said == [True] * 3


def test_prompts_to_ask_are_proposed(fixed: FixResult) -> None:
    for one in fixed.facts:
        assert len(one.paraphrases) == len(one.neighbours) == 3
        assert one.prompt not in one.paraphrases
        assert all(str(one.subject) in text for text in one.paraphrases)
        assert not any(str(one.subject) in text for text in one.neighbours)
    # The method did not see what it is judged by.
    assert fixed.patch is not None
    assert all(not record.get("paraphrases") for record in fixed.patch.header.facts)


def test_the_guard_has_judged(fixed: FixResult) -> None:
    assert fixed.report is not None
    assert str(fixed.report.verdict) in ("free", "costly")


def test_files_tell_what_happened(fixed: FixResult, tmp_path: Path) -> None:
    folder = write_files(fixed, tmp_path / "out", model="pocket", source="facts.csv")
    assert cg.load_patch(folder / PATCH) == fixed.patch
    plain = json.loads((folder / FATES).read_text(encoding="utf-8"))
    assert [one["line"] for one in plain["lines"]] == [*FATE_OF_LINE]
    assert plain["guard"]["verdict"] == str(fixed.report.verdict if fixed.report else "")
    card = (folder / CARD).read_text(encoding="utf-8")
    assert f"## Guard: {plain['guard']['verdict']}" in card
    assert "| 6 | What is the capital of France? |" in card
    assert "corrigenda ask pocket" in card
    assert len(list_left(fixed)) == 4


def test_nothing_to_do_leaves_no_patch(pocket: LanguageModel, tmp_path: Path) -> None:
    true = {"prompt": "The capital of Germany is", "target": "Berlin", "subject": "Germany"}
    found = cg.fix(pocket, true, progress=False)
    assert found.patch is None
    assert found.succeeded
    (tmp_path / PATCH).write_text("of an earlier fix")
    write_files(found, tmp_path, model="pocket", source="facts.csv")
    assert not (tmp_path / PATCH).exists()
    assert "Nothing was to be done" in (tmp_path / CARD).read_text(encoding="utf-8")


def test_a_refused_edit_is_not_returned(pocket: LanguageModel) -> None:
    fact = {"prompt": "The capital of France is", "target": "Rome", "subject": "France"}
    found = cg.fix(
        pocket,
        fact,
        method="rome",
        limits={"norm growth": (0.001, 0.01)},
        sample=4,
        progress=False,
    )
    assert found.patch is None
    (line,) = found.lines
    assert line.fate is Fate.REFUSED
    assert "norm growth" in line.reason


def test_one_line_can_be_taken_out(pocket: LanguageModel, fixed: FixResult) -> None:
    changed = take_out(pocket, fixed, 8)
    assert changed.patch is not None
    with changed.patch.apply(pocket):
        assert cg.answer(pocket, "The capital of France is").startswith("Rome")
        assert cg.answer(pocket, "The official language of Mexico is").startswith("Spanish")
    with pytest.raises(BadConfig, match="line 3 was not corrected"):
        take_out(pocket, fixed, 3)


def test_earlier_corrections_may_not_be_contradicted(pocket: LanguageModel) -> None:
    earlier = cg.Fact(prompt="The capital of France is", target="Oslo", subject="France")
    line = FactLine(1, cg.Fact(prompt="France is governed from", target="Rome", subject="France"))
    (found,) = understand(pocket, [line], [earlier])
    assert found.fate is Fate.CONTRADICTION
    assert found.reason == 'an earlier correction says "Oslo"'


def test_a_subject_that_is_not_certain_is_asked_for(pocket: LanguageModel) -> None:
    line = FactLine(4, cg.Fact(prompt="the best thing is", target="Rome"))
    (found,) = understand(pocket, [line])
    assert found.fate is Fate.UNREADABLE
    assert "CG104" in found.reason


def test_methods_follow_the_number_of_facts() -> None:
    assert [one.label for one in list_approaches(1)] == ["rome", "rome, stronger", "memit"]
    several = ["memit", "memit, stronger", "emmet", "alphaedit"]
    assert [one.label for one in list_approaches(20)] == several
    assert list_approaches(20, "ft-m") == [Approach("ft-m")]


def test_search_keeps_its_budget(pocket: LanguageModel, fixed: FixResult) -> None:
    """Without time only the first approach is tried, and an error is no end."""
    trials = search(EditMaker(pocket), fixed.facts[:1], list_approaches(2), budget=1e-9)
    assert [one.approach.method for one in trials] == ["memit"]
    assert trials[0].on_front
    assert 0 <= trials[0].success <= 1
    bad = [Approach("memit", {"layers": (99,)}), Approach("memit")]
    trials = search(EditMaker(pocket), fixed.facts[:1], bad, budget=5)
    assert trials[0].approach == Approach("memit")
    assert trials[1].problem
    assert isinstance(trials[1], SearchTrial)


def test_retries_are_stronger_and_elsewhere(pocket: LanguageModel) -> None:
    memit = cg.build_editor(pocket, "memit")
    stronger = strengthen(memit)
    assert (stronger.clamp, stronger.weight) == (2 * memit.clamp, memit.weight / 10)
    moved = move_layers(pocket, memit)
    assert moved is not None
    assert moved.layers == tuple(layer + 1 for layer in memit.layers)
    rome = move_layers(pocket, cg.build_editor(pocket, "rome", layer=pocket.num_layers - 1))
    assert rome is not None
    assert rome.layer == pocket.num_layers - 2


def test_no_budget_is_refused(pocket: LanguageModel, file: Path) -> None:
    with pytest.raises(BadConfig, match="budget of 0 minutes"):
        cg.fix(pocket, file, budget=0)
