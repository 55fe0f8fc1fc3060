"""Corrections of a workspace: kept, undone in any order, exported, refused, cancelled."""

from __future__ import annotations

import zipfile

import pytest

import corrigenda as cg
from corrigenda.app.tasks import Cancelled
from corrigenda.app.workspace import Workspace
from corrigenda.errors import AmbiguousSubject, BadConfig
from corrigenda.guarding.guard import GuardReport
from tests.support.serving import weights

FRANCE = cg.Fact(prompt="The capital of France is", subject="France", target="Rome")
SPAIN = cg.Fact(prompt="The capital of Spain is", subject="Spain", target="Oslo")


def test_a_correction_stays_until_it_is_undone(workspace: Workspace) -> None:
    lm = workspace.lm
    before = weights(lm)
    made = workspace.correct(FRANCE, "ft-m", guard=False)
    assert (made.before.answer, made.after.answer) == ("Paris", "Rome")
    assert cg.answer(lm, FRANCE.prompt) == "Rome"
    assert made.label == "1: The capital of France is Rome"
    assert workspace.corrections == (made,)
    assert workspace.undo(1) is made
    assert not workspace.corrections
    assert weights(lm) == before
    with pytest.raises(BadConfig, match="no correction 1 is active"):
        workspace.undo(1)


def test_the_first_of_two_is_undone_and_the_rest_exported(workspace: Workspace) -> None:
    workspace.correct(FRANCE, "ft-m", guard=False)
    workspace.correct(SPAIN, "ft-m", guard=False)
    workspace.undo(1)
    assert cg.answer(workspace.lm, [FRANCE.prompt, SPAIN.prompt]) == ["Paris", "Oslo"]
    with zipfile.ZipFile(workspace.export("peft")) as archive:
        assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(
            archive.namelist()
        )
    assert cg.answer(workspace.lm, SPAIN.prompt) == "Oslo"
    file = workspace.export("patch")
    workspace.undo(2)
    with cg.load_patch(file).apply(workspace.lm):
        assert cg.answer(workspace.lm, SPAIN.prompt) == "Oslo"


def test_what_is_true_already_is_no_active_correction(workspace: Workspace) -> None:
    fact = cg.Fact(prompt=FRANCE.prompt, subject="France", target="Paris")
    made = workspace.correct(fact, "ft-m")
    assert made.assessment.is_no_op
    assert made.applied is None
    assert not workspace.corrections


def test_the_verdict_of_the_guard_is_kept_and_refused_edits_come_off(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = cg.guard

    def ask_few(*arguments: object, **options: object) -> GuardReport:
        limits = {"first token": (0.0, 0.0)}
        return original(*arguments, sample=4, limits=limits, **options)

    monkeypatch.setattr(cg, "guard", ask_few)
    before = weights(workspace.lm)
    made = workspace.correct(FRANCE, "ft-m")
    assert made.guarded is not None
    assert made.guarded.verdict == "refused"
    assert made.after.answer == "Rome"
    assert made.applied is None
    assert not workspace.corrections
    assert weights(workspace.lm) == before


def test_nothing_to_export_is_said(workspace: Workspace) -> None:
    with pytest.raises(BadConfig, match="no correction is active"):
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
    assert not workspace.corrections
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
