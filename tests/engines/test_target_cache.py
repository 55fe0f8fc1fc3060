"""Targets that were searched already: equal to those of a search alone, and searched once."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import corrigenda as cg
from corrigenda.almanac.exam import ExamEdit
from corrigenda.engines.locate import target_search
from corrigenda.engines.locate.rows import rewrite_rows
from corrigenda.engines.locate.target_cache import current_targets, keep_targets
from corrigenda.facts import Fact
from corrigenda.knowledge.edit_trial import EditTrial, Unedited
from corrigenda.lm.model import LanguageModel
from corrigenda.methods.memit.editor import Memit
from corrigenda.methods.rome.editor import Rome
from corrigenda.patch import WeightPatch

FACTS = [
    Fact(prompt="The capital of France is", subject="France", target="Rome"),
    Fact(prompt="The capital of Italy is", subject="Italy", target="Madrid"),
    Fact(prompt="Japan's currency is called the", subject="Japan", target="euro"),
]
OPTIONS = {"steps": 4, "num_prefixes": 2}


@pytest.fixture(scope="module")
def pocket() -> LanguageModel:
    return cg.load("pocket")


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many facts each search was made for."""
    found: list[int] = []
    search = target_search._find

    def count(*args: object, names: list[str], **options: object) -> object:
        found.append(len(names))
        return search(*args, names=names, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(target_search, "_find", count)
    return found


def changes(patch: object) -> torch.Tensor:
    """Return the whole change of the one site of a patch."""
    assert isinstance(patch, WeightPatch)
    (change,) = patch.changes.values()
    return change.to_dense().double()


@pytest.mark.parametrize("editor", [Rome(**OPTIONS, layer=2), Memit(**OPTIONS, layers=(2,))])
def test_edits_with_targets_searched_ahead_equal_those_alone(
    pocket: LanguageModel, editor: Rome | Memit, searched: list[int]
) -> None:
    """One search for all three; the changes differ by rounding."""
    state = editor.fit(pocket)
    alone = [changes(editor.edit(pocket, [fact], state).patch) for fact in FACTS]
    assert searched == [1, 1, 1]
    searched.clear()
    with keep_targets() as cache:
        editor.search_ahead(pocket, FACTS, state)
        ahead = [changes(editor.edit(pocket, [fact], state).patch) for fact in FACTS]
        assert len(cache) == 3
        assert cache.hits == 3
    assert searched == [3]
    for one, other in zip(alone, ahead, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max()))


def test_outside_nothing_is_kept_and_nothing_searched_ahead(
    pocket: LanguageModel, searched: list[int]
) -> None:
    editor = Memit(**OPTIONS, layers=(2,))
    state = editor.fit(pocket)
    editor.search_ahead(pocket, FACTS, state)
    assert searched == []
    assert current_targets() is None
    editor.edit(pocket, FACTS[:1], state)
    editor.edit(pocket, FACTS[:1], state)
    assert searched == [1, 1]


def test_other_settings_other_models_and_active_patches_are_searched_again(
    pocket: LanguageModel, searched: list[int]
) -> None:
    editor = Memit(**OPTIONS, layers=(2,))
    state = editor.fit(pocket)
    fact = FACTS[:1]
    with keep_targets():
        patch = editor.edit(pocket, fact, state).patch
        editor.edit(pocket, fact, state)
        assert searched == [1]
        editor.model_copy(update={"clamp": 0.5}).edit(pocket, fact, state)
        assert searched == [1, 1]
        with patch.apply(pocket):
            editor.edit(pocket, fact, state)
        assert searched == [1, 1, 1]
        editor.edit(pocket, [dataclasses.replace(fact[0], target="Oslo")], state)
        assert searched == [1, 1, 1, 1]
        # The price of old keys enters the solve and not the search.
        editor.model_copy(update={"weight": 7.0}).edit(pocket, fact, state)
        assert searched == [1, 1, 1, 1]


def test_equal_facts_are_searched_once_and_the_order_is_that_of_the_facts(
    pocket: LanguageModel, searched: list[int]
) -> None:
    editor = Memit(**OPTIONS, layers=(2,))
    plan = editor.make_plan(pocket, editor.fit(pocket))
    alone = editor.find_wanted(pocket, FACTS, plan, 2)[0]
    with keep_targets():
        editor.find_wanted(pocket, FACTS[1:2], plan, 2)
        found = editor.find_wanted(pocket, [*FACTS, FACTS[0]], plan, 2)[0]
    assert searched == [3, 1, 2]
    torch.testing.assert_close(found.deltas[:3], alone.deltas, rtol=1e-3, atol=1e-4)
    assert torch.equal(found.deltas[0], found.deltas[3])
    assert [len(one.losses) for one in found.traces[:3]] == [
        len(one.losses) for one in alone.traces
    ]


def test_a_trial_times_only_edits_that_search_themselves(pocket: LanguageModel) -> None:
    editor = Memit(**OPTIONS, layers=(2,))
    state = editor.fit(pocket)
    cases = [ExamEdit(fact) for fact in FACTS]
    trial = EditTrial(pocket, editor, Unedited(pocket, cases))
    with keep_targets():
        trial.search_ahead(cases, state, timed=1)
        for case in cases:
            trial.edit([case], state)
    assert len(trial.seconds) == 1
    assert trial.ahead_seconds > 0
    assert len(trial.num_bytes) == 3


def test_fewer_prefixes_are_evenly_spread(pocket: LanguageModel) -> None:
    """Two of the ROME style's: one of each length."""
    editor = Rome(layer=2, num_prefixes=2)
    plan = editor.make_plan(pocket, editor.fit(pocket))
    assert len(plan.contexts.prefixes) == 3
    lengths = [len(pocket.tokenizer(one).input_ids) for one in plan.contexts.prefixes[1:]]
    assert lengths[0] < lengths[1]
    assert len(rewrite_rows(pocket, FACTS[:1], plan.contexts)) == 4
    with pytest.raises(cg.errors.BadConfig, match="It has 20"):
        Rome(layer=2, num_prefixes=21).fit(pocket)
