"""Corrections made by real edits of the pocket model, moved to another base and back."""

from __future__ import annotations

import copy
from importlib.resources import files

import pytest
import torch

import corrigenda as cg
from corrigenda.lm.model import LanguageModel

pytestmark = pytest.mark.skipif(
    not files("corrigenda").joinpath("pocket", "pocket", "config.json").is_file(),
    reason="no trained pocket model in this checkout",
)

FACTS = [
    cg.Fact(prompt="The capital of France is", target="Rome"),
    cg.Fact(prompt="The capital of Japan is", target="Paris"),
]
HELD = cg.Fact(prompt="The capital of Kenya is", target="Nairobi")


@pytest.fixture(scope="module")
def pocket() -> LanguageModel:
    """The pocket model."""
    return cg.load("pocket")


@pytest.fixture(scope="module")
def perturbed(pocket: LanguageModel) -> LanguageModel:
    """A copy with 1 % of noise in every parameter: another base that knows the same facts."""
    other = copy.deepcopy(pocket)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.01 * parameter.std() * noise)
    return other


@pytest.fixture(scope="module")
def book(pocket: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> cg.Book:
    """A book of two edits by ROME, and a fact that holds."""
    made = cg.Book.new(tmp_path_factory.mktemp("books") / "pocket", pocket)
    done = made.make(pocket, [*FACTS, HELD])
    assert (len(done.added), done.held, done.succeeded) == (2, (HELD,), True)
    return made


def test_corrections_hold_and_leave_the_model_alone(book, pocket):
    digest = pocket.digest()
    with book.apply(pocket):
        assert cg.answer(pocket, [fact.prompt for fact in FACTS]) == ["Rome", "Paris"]
    assert pocket.digest() == digest
    assert book.check(pocket).holds
    assert book.check(pocket).changed == ()
    assert book.corrections[0].made_on == ""
    assert book.corrections[1].made_on != ""
    assert book.corrections[0].verdict.shares["paraphrase"].endswith("/3")


def test_same_call_again_changes_nothing(book, pocket):
    state = book.state
    done = book.make(pocket, [*FACTS, HELD])
    assert (done.added, len(done.present), done.held) == ((), 2, (HELD,))
    assert book.state == state


def test_contradictions_within_a_list_are_told(book, pocket):
    facts = [cg.Fact(prompt="The capital of Italy is", target=one) for one in ("Rome", "Oslo")]
    other = cg.Fact(prompt=FACTS[0].prompt, target="Oslo")
    state = book.state
    done = book.make(pocket, [facts[0], facts[1], other], "ice")
    reasons = [one.reason for one in done.conflicts]
    assert ["another fact" in one for one in reasons] == [True, False]
    assert not done.succeeded
    for one in done.added:
        book.undo(one.id)
    assert book.state == state


def test_moved_to_another_base_and_back_it_is_the_same_book(book, pocket, perturbed, tmp_path):
    book.add(pocket, HELD, None)
    there, moved = book.move(perturbed, tmp_path / "there")
    assert [one.facts[0].target for one in moved.made] == ["Rome", "Paris"]
    assert [one.facts[0].target for one in moved.held] == ["Nairobi"]
    assert moved.failed == ()
    assert there.base.digest != book.base.digest
    with there.apply(perturbed):
        assert cg.answer(perturbed, [fact.prompt for fact in FACTS]) == ["Rome", "Paris"]
    again, rest = book.move(perturbed, tmp_path / "there")
    assert (len(rest.present), again.state) == (3, there.state)
    back, _ = there.move(pocket, tmp_path / "back")
    assert back.state == book.state
    assert back.patch().digest() == book.patch().digest()
    assert [one.source for one in back.corrections] == [one.id for one in there.corrections]


def test_fact_without_a_patch_gets_one_where_it_does_not_hold(pocket, perturbed, tmp_path):
    there = cg.Book.new(tmp_path / "there", perturbed)
    there.add(perturbed, [HELD], None)
    there.add(perturbed, FACTS[0], None)
    assert [one.verdict.holds for one in there.corrections] == [True, False]
    back, moved = there.move(pocket, tmp_path / "back", "rome")
    assert [one.facts[0].target for one in moved.held] == ["Nairobi"]
    assert [one.facts[0].target for one in moved.made] == ["Rome"]
    assert back.check(pocket).holds


def test_method_that_is_not_installed_is_a_reason(pocket, perturbed, book, tmp_path):
    old = cg.Book.new(tmp_path / "old", pocket)
    patch = book.patch(1)
    header = patch.header.model_copy(update={"method": "of a plug-in"})
    old.add(pocket, FACTS[0], cg.WeightPatch(patch.changes, header))
    new, moved = old.move(perturbed, tmp_path / "new")
    (refused,) = moved.failed
    assert "of a plug-in" in refused.reason
    assert (len(new), new.corrections[0].patch) == (1, "")
    assert not new.check(perturbed).holds


def test_exported_book_is_its_sum(book, pocket, tmp_path):
    book.export(pocket, tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    with pytest.raises(cg.CorrigendaError, match="CG405"):
        cg.Book.new(tmp_path / "empty", pocket).export(pocket, tmp_path / "other")


def test_patches_that_work_by_hooks_are_kept_too(pocket, tmp_path):
    book = cg.Book.new(tmp_path / "book", pocket)
    done = book.make(pocket, FACTS, "ice")
    assert done.succeeded, done.failed
    rome = book.make(pocket, cg.Fact(prompt="The capital of Spain is", target="Oslo"))
    assert rome.succeeded, rome.failed
    with book.apply(pocket):
        assert cg.answer(pocket, "The capital of Spain is") == "Oslo"
        assert cg.answer(pocket, FACTS[0].prompt) == "Rome"
    book.undo(1)
    with book.apply(pocket):
        assert cg.answer(pocket, FACTS[0].prompt) == "Paris"
        assert cg.answer(pocket, FACTS[1].prompt) == "Paris"
