"""Corrections of a workspace: kept, undone in any order, exported, refused, cancelled."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

import corrigenda as cg
from corrigenda.app.tasks import Cancelled
from corrigenda.app.workspace import Workspace
from corrigenda.books import Book
from corrigenda.errors import (
    AmbiguousSubject,
    BadConfig,
    ConflictingCorrections,
    UnknownCorrection,
    WrongBase,
)
from corrigenda.guarding.guard import GuardReport
from corrigenda.lm.model import LanguageModel
from tests.support.serving import weights

FRANCE = cg.Fact(prompt="The capital of France is", subject="France", target="Rome")
SPAIN = cg.Fact(prompt="The capital of Spain is", subject="Spain", target="Oslo")


def test_a_correction_stays_until_it_is_undone(workspace: Workspace) -> None:
    lm = workspace.lm
    before = weights(lm)
    made = workspace.correct(FRANCE, "ft-m", guard=False)
    assert (made.before.answer, made.after.answer) == ("Paris", "Rome")
    assert cg.answer(lm, FRANCE.prompt) == "Rome"
    assert made.kept is not None
    assert made.kept.label == "The capital of France is -> Rome"
    assert workspace.book.corrections == (made.kept,)
    assert workspace.undo(made.kept.id).id == made.kept.id
    assert not workspace.book.corrections
    assert weights(lm) == before
    with pytest.raises(UnknownCorrection):
        workspace.undo(made.kept.id)


def test_related_prompts_are_found_without_a_subject(workspace: Workspace) -> None:
    fact = cg.Fact(prompt=FRANCE.prompt, target="Rome")
    roles = {one.role for one in workspace.correct(fact, "ft-m", guard=False).assessment.answers}
    assert roles == {"prompt", "paraphrase", "neighbour", "same subject"}


def test_the_first_of_two_is_undone_and_the_rest_exported(workspace: Workspace) -> None:
    first = workspace.correct(FRANCE, "ft-m", guard=False).kept
    workspace.correct(SPAIN, "ft-m", guard=False)
    assert first is not None
    workspace.undo(first.id)
    assert cg.answer(workspace.lm, [FRANCE.prompt, SPAIN.prompt]) == ["Paris", "Oslo"]
    with zipfile.ZipFile(workspace.export("peft")) as archive:
        assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(
            archive.namelist()
        )
    assert cg.answer(workspace.lm, SPAIN.prompt) == "Oslo"
    file = workspace.export("patch")
    workspace.undo("2")
    with cg.load_patch(file).apply(workspace.lm):
        assert cg.answer(workspace.lm, SPAIN.prompt) == "Oslo"


def test_what_is_true_already_is_not_kept(workspace: Workspace) -> None:
    fact = cg.Fact(prompt=FRANCE.prompt, subject="France", target="Paris")
    made = workspace.correct(fact, "ft-m")
    assert made.assessment.is_no_op
    assert made.kept is None
    assert not workspace.book.corrections


def test_the_verdict_of_the_guard_is_noted_and_refused_edits_are_not_kept(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = cg.guard
    limits = {"first token": (0.0, 0.0)}

    def ask_few(*arguments: object, **options: object) -> GuardReport:
        return original(*arguments, sample=4, limits=limits, **options)

    monkeypatch.setattr(cg, "guard", ask_few)
    before = weights(workspace.lm)
    made = workspace.correct(FRANCE, "ft-m")
    assert made.is_refused
    assert made.after.answer == "Rome"
    assert made.kept is None
    assert weights(workspace.lm) == before
    limits["first token"] = (100.0, 100.0)
    made = workspace.correct(FRANCE, "ft-m")
    assert made.guarded is not None
    assert made.kept is not None
    assert made.kept.verdict.guard == str(made.guarded.verdict)


def test_a_second_answer_to_a_question_is_refused(workspace: Workspace) -> None:
    workspace.correct(FRANCE, "ft-m", guard=False)
    other = cg.Fact(prompt=FRANCE.prompt, subject="France", target="Oslo")
    with pytest.raises(ConflictingCorrections, match="CG803"):
        workspace.correct(other, "ft-m", guard=False)
    assert cg.answer(workspace.lm, FRANCE.prompt) == "Rome"


def test_a_book_is_opened_followed_and_left_as_it_is(lm: LanguageModel, tmp_path: Path) -> None:
    book = Book.new(tmp_path / "book", lm)
    before = weights(lm)
    empty = Workspace(lm, book)
    assert empty.book is book
    empty.close()
    kept = book.add(lm, FRANCE, cg.edit(lm, FRANCE, cg.FtM(layer=4), progress=False))
    workspace = Workspace(lm, book)
    try:
        assert workspace.is_kept
        assert cg.answer(lm, FRANCE.prompt) == "Rome"
        assert workspace.check().holds
        Book.open(book.folder).undo(kept.id)
        said = workspace.start(lambda: cg.answer(lm, FRANCE.prompt)).result()
        assert said == "Paris"
        workspace.correct(SPAIN, "ft-m", guard=False)
    finally:
        workspace.close()
    assert weights(lm) == before
    assert [one.facts[0].target for one in Book.open(book.folder).corrections] == ["Oslo"]


def test_the_book_of_another_model_is_refused(lm: LanguageModel, tmp_path: Path) -> None:
    book = Book.new(tmp_path / "book", lm)
    with pytest.raises(WrongBase, match="CG401"):
        Workspace(cg.load("pocket-gpt2"), book)


def test_nothing_to_export_is_said(workspace: Workspace) -> None:
    with pytest.raises(BadConfig, match="no correction is on the model"):
        workspace.export("patch")


def test_bad_input_leaves_the_model_as_it_was(workspace: Workspace) -> None:
    before = weights(workspace.lm)
    fact = cg.Fact(prompt="It is said that the answer is", target="Rome")
    with pytest.raises(AmbiguousSubject):
        workspace.start(lambda: workspace.correct(fact, "rome")).result()
    assert weights(workspace.lm) == before


def test_cancelled_work_leaves_the_model_as_it_was(workspace: Workspace) -> None:
    before = weights(workspace.lm)

    def work() -> object:
        workspace.cancel()
        return workspace.correct(FRANCE, "rome")

    with pytest.raises(Cancelled):
        workspace.start(work).result()
    assert not workspace.book.corrections
    assert weights(workspace.lm) == before


def test_traces_and_injections_can_be_cancelled(workspace: Workspace) -> None:
    def trace() -> object:
        workspace.cancel()
        return workspace.trace(FRANCE.prompt, "France", None, samples=2)

    def inject() -> object:
        workspace.cancel()
        return workspace.inject(FRANCE)

    for work in (trace, inject):
        with pytest.raises(Cancelled):
            workspace.start(work).result()
