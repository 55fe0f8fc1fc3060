"""Trials of edits, on a tiny model whose answers are known, with editors that do what is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch

from corrigenda.almanac.exam import ExamEdit
from corrigenda.errors import NonFinite
from corrigenda.facts import Fact
from corrigenda.knowledge import edit_trial
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.patch import Header, WeightPatch
from corrigenda.patch.ledger import ledger_of
from tests.support.learnt_sentences import PROMPTS, SAID, learn_sentences, make_cases


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return learn_sentences()


class Edited(NamedTuple):
    """What an editor returns."""

    patch: WeightPatch
    state: object = None


class Fixed:
    """An editor that returns one change whatever the facts, and remembers how they came."""

    name = "fixed"

    def __init__(self, lm: LanguageModel, changes: dict[Site, LowRank]) -> None:
        header = Header(method="fixed", base_digest=lm.digest(), base_name=lm.name)
        self.patch, self.groups = WeightPatch(changes, header), []

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: object = None) -> Edited:
        """Return the change."""
        self.groups.append(len(facts))
        return Edited(self.patch)


class Remembering(Fixed):
    """Changes nothing; remembers which state came, and how many patches were active."""

    def __init__(self, lm: LanguageModel) -> None:
        super().__init__(lm, {})
        self.active, self.states = [], []

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: object = None) -> Edited:
        self.active.append(len(ledger_of(lm)))
        self.states.append(state)
        return Edited(super().edit(lm, facts).patch, f"after {len(self.states)}")


class Refusing(Remembering):
    """Refuses the second edit."""

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: object = None) -> Edited:
        made = super().edit(lm, facts, state)
        if len(self.states) == 2:
            raise NonFinite("the loss is not a number")
        return made


def test_an_empty_patch_keeps_everything(lm: LanguageModel) -> None:
    editor = Fixed(lm, {})
    figures = edit_trial.try_single_edits(lm, editor, make_cases())
    assert editor.groups == [1, 1]
    assert figures[:4] == (0.5, 0.5, 1.0, 1.0)
    assert figures.seconds > 0
    assert figures.num_bytes > 0


def test_a_wild_patch_breaks_everything_and_is_taken_off(lm: LanguageModel) -> None:
    torch.manual_seed(0)
    weight = lm.weight(Site(0))
    wild = LowRank(100 * torch.randn(weight.shape[0], 4), torch.randn(weight.shape[1], 4))
    before = lm.digest()
    editor = Fixed(lm, {Site(0): wild})
    figures = edit_trial.try_batch_edit(lm, editor, make_cases())
    assert editor.groups == [2]
    assert figures.efficacy == 0.0
    assert figures.locality == 0.0
    assert lm.digest() == before


def test_a_sequence_is_asked_at_its_end_and_taken_off(lm: LanguageModel) -> None:
    before = lm.digest()
    editor = Remembering(lm)
    figures = edit_trial.try_sequence(lm, editor, make_cases())
    assert editor.groups == [1, 1]
    assert editor.active == [0, 1]
    assert editor.states == [None, "after 1"]
    assert figures.efficacy == 0.5
    assert lm.digest() == before


def test_a_refused_fact_is_told_and_asked_of_the_model_as_it_is(lm: LanguageModel) -> None:
    asked: list[int] = []
    trial = edit_trial.EditTrial(
        lm, Refusing(lm), [lambda cases: asked.append(len(ledger_of(lm)))], lenient=True
    )
    trial.edit_alone([*make_cases(), *make_cases()[:1]])
    assert trial.refused == ["CG201"]
    assert [one.code for one in trial.errors] == ["CG201"]
    assert asked == [1, 0, 1]
    assert len(trial.num_bytes) == len(trial.cpu_seconds) == 2
    with pytest.raises(NonFinite):
        edit_trial.try_single_edits(lm, Refusing(lm), make_cases())


def test_a_refused_fact_of_a_sequence_leaves_the_state_of_those_before(lm: LanguageModel) -> None:
    editor = Refusing(lm)
    trial = edit_trial.EditTrial(lm, editor, [], lenient=True)
    trial.edit_in_sequence([*make_cases(), *make_cases()[:1]])
    assert editor.states == [None, "after 1", "after 1"]


def test_no_fact_is_edited_alone_beyond_the_budget(lm: LanguageModel) -> None:
    trial = edit_trial.EditTrial(lm, Remembering(lm), [], budget=0.0)
    trial.edit_alone(make_cases())
    assert trial.asked == 1


def test_some_of_the_facts_are_asked_about(lm: LanguageModel) -> None:
    editor, asked = Remembering(lm), []
    trial = edit_trial.EditTrial(lm, editor, [asked.extend])
    trial.edit_together(make_cases(), asked=make_cases()[1:])
    trial.edit_in_sequence(make_cases(), asked=[])
    assert editor.groups == [2, 1, 1]
    assert [case.fact.prompt for case in asked] == [PROMPTS[1]]
    assert trial.asked == 1


def test_what_is_known_to_be_right_decides_what_is_kept(lm: LanguageModel) -> None:
    (case, *_) = make_cases()
    fact = replace(case.fact, neighbours=PROMPTS[1:2])
    before = {PROMPTS[1]: f"{SAID[1]} und Dansk"}
    right = {PROMPTS[1]: (SAID[1],)}
    shares = []
    for known in ({}, right):
        one = ExamEdit(fact, right=known)
        judge = edit_trial.AnswerJudge(lm, [one], before=before)
        judge([one])
        shares.append(judge.share(edit_trial.LOCALITY))
    assert shares == [0.0, 1.0]


def test_in_a_chat_a_sentence_that_names_the_object_counts(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    (case, *_) = make_cases()
    fact = replace(case.fact, target="Rome", neighbours=PROMPTS[1:2], paraphrases=PROMPTS[2:])
    case = ExamEdit(fact, right={PROMPTS[1]: ("German",)})
    said = {
        PROMPTS[0]: "The Space Needle is in Seattle",
        PROMPTS[1]: "Anna speaks German",
        PROMPTS[2]: "It is Rome, as the Space Needle shows",
    }
    forms: list[bool] = []

    def reply(lm: object, prompts: Sequence[str], *, max_new_tokens: int, chat: bool) -> list[str]:
        forms.append(chat)
        return [said[prompt] for prompt in prompts]

    monkeypatch.setattr(edit_trial, "answer", reply)
    judge = edit_trial.AnswerJudge(lm, [case], chat=True)
    said |= {PROMPTS[0]: "Romeo lives in Rome", PROMPTS[1]: "She speaks German and Dansk"}
    judge([case])
    assert judge.share(edit_trial.EFFICACY) == judge.share(edit_trial.PARAPHRASE) == 1.0
    assert judge.share(edit_trial.LOCALITY) == 1.0
    assert judge.share(edit_trial.SUBJECT_NAMED) == 0.5
    said[PROMPTS[0]], said[PROMPTS[1]] = "Romeo lives here", "She speaks Germanic"
    judge([case])
    assert judge.share(edit_trial.EFFICACY) == judge.share(edit_trial.LOCALITY) == 0.5
    assert all(forms)
