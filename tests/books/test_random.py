"""Random histories of a book: at every step it is what a plain model of it says."""

from __future__ import annotations

import itertools
import os
import random
import warnings
from functools import reduce
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from corrigenda import files
from corrigenda.books import Book
from corrigenda.errors import ConflictingCorrections, UnknownCorrection
from corrigenda.facts import Fact
from corrigenda.patch.weights import WeightPatch
from corrigenda.testing.tiny import tiny_model
from tests.books.conftest import WRITTEN, draw_patch, fact, weights
from tests.books.test_killed import run_killed

COUNTER = itertools.count()
NUMBERS = st.integers(0, 11)
TARGETS = st.sampled_from(["Rome", "Oslo"])


def seed_of(number: int, target: str) -> int:
    """The patch that a fact is given."""
    return 2 * number + (target == "Oslo")


class BookHistory(RuleBasedStateMachine):
    """Two books of one model and what they should hold: pairs of number and target, in order."""

    folder: Path
    lm = tiny_model("llama", layers=2)
    other = tiny_model("llama", layers=2, seed=1)

    def __init__(self) -> None:
        """Begin with no book."""
        super().__init__()
        self.held: dict[str, list[tuple[int, str]]] = {"a": [], "b": []}
        self.out: dict[str, set[tuple[int, str]]] = {"a": set(), "b": set()}
        self.run = 0

    @initialize()
    def begin(self) -> None:
        """Make two empty books."""
        self.place = self.folder / str(next(COUNTER))
        for name in self.held:
            Book.new(self.place / name, self.lm)

    def open(self, name: str) -> Book:
        """Open a book anew, as another process would."""
        return Book.open(self.place / name)

    def add(self, name: str, number: int, target: str) -> None:
        """Add a fact with its drawn patch."""
        patch = draw_patch(self.lm, seed_of(number, target))
        self.open(name).add(self.lm, fact(number, target), patch, verdict=WRITTEN)

    @rule(name=st.sampled_from("ab"), number=NUMBERS, answer=TARGETS)
    def added(self, name: str, number: int, answer: str) -> None:
        """A fact comes in unless its question is answered."""
        if any(number == one for one, _ in self.held[name]):
            with pytest.raises(ConflictingCorrections):
                self.add(name, number, answer)
            return
        self.add(name, number, answer)
        self.held[name].append((number, answer))
        self.out[name].discard((number, answer))

    @rule(name=st.sampled_from("ab"), chance=st.integers(0, 1000))
    def undone(self, name: str, chance: int) -> None:
        """One of the corrections goes out."""
        book = self.open(name)
        if not self.held[name]:
            with pytest.raises(UnknownCorrection):
                book.undo(1)
            return
        index = chance % len(self.held[name])
        book.undo(book.corrections[index].id)
        self.out[name].add(self.held[name].pop(index))

    @rule(name=st.sampled_from("ab"), number=NUMBERS, after=st.integers(0, 12))
    def killed_while_adding(self, name: str, number: int, after: int) -> None:
        """A process that is killed has added the fact, or has not."""
        if any(number == one for one, _ in self.held[name]):
            return
        run_killed(lambda: self.add(name, number, "Rome"), after)
        if len(self.open(name)) > len(self.held[name]):
            self.held[name].append((number, "Rome"))
            self.out[name].discard((number, "Rome"))

    @precondition(lambda self: self.held["a"])
    @rule(after=st.integers(0, 8))
    def killed_while_undoing(self, after: int) -> None:
        """A process that is killed has taken it out, or has not."""
        run_killed(lambda: self.open("a").undo(self.open("a").corrections[0].id), after)
        if len(self.open("a")) < len(self.held["a"]):
            self.out["a"].add(self.held["a"].pop(0))

    @rule(name=st.sampled_from("ab"))
    def checked(self, name: str) -> None:
        """Asking changes no correction."""
        found = self.open(name).check(self.lm)
        assert len(found.results) == len(self.held[name])
        assert self.open(name).status().is_checked

    @rule()
    def merged(self) -> None:
        """The second book comes into the first; where they contradict, the first stays."""
        ours, theirs = self.held["a"], self.held["b"]
        gone = self.out["a"] | self.out["b"]
        kept = [one for one in ours if one not in gone]
        questions = {number for number, _ in kept}
        coming = [one for one in theirs if one not in ours and one not in gone]
        against = [one for one in coming if one[0] in questions]
        first, second = self.open("a"), self.open("b")
        if against:
            with pytest.raises(ConflictingCorrections, match=f"{len(against)} correction"):
                first.merge(second)
        done = first.merge(second, keep="ours")
        fresh = [one for one in coming if one not in against]
        assert (len(done.added), len(done.left_out)) == (len(fresh), len(against))
        self.out["a"] |= set(ours) - set(kept)
        self.held["a"] = [*kept, *fresh]

    @precondition(lambda self: len(self.held["a"]) > 1)
    @rule()
    def moved(self) -> None:
        """Each correction is in the book of the other model, in order, with or without a patch."""
        self.run += 1
        new, moved = self.open("a").move(self.other, self.place / f"moved-{self.run}")
        prompts = [one.facts[0] for one in new.corrections]
        assert prompts == [fact(*one) for one in self.held["a"]]
        assert len(moved.failed) == len(prompts)

    @invariant()
    def whole(self) -> None:
        """Facts, order and weights are those of a book that had this history and no other."""
        if not hasattr(self, "place"):
            return
        for name, held in self.held.items():
            book = self.open(name)
            assert [one.facts[0] for one in book.corrections] == [fact(*one) for one in held]
            patches = [draw_patch(self.lm, seed_of(*one)) for one in held]
            pristine = weights(self.lm)
            expected = pristine
            if patches:
                with reduce(WeightPatch.__add__, patches).apply(self.lm):
                    expected = weights(self.lm)
            with book.apply(self.lm):
                assert weights(self.lm) == expected
            assert weights(self.lm) == pristine


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_random_histories(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_sync", lambda _: None)
    BookHistory.folder = tmp_path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = settings(
            max_examples=12,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        from hypothesis.stateful import run_state_machine_as_test

        run_state_machine_as_test(BookHistory, settings=run)


def test_any_of_two_hundred_goes_out_as_if_it_had_never_been(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_sync", lambda _: None)
    number = 200
    book = Book.new(tmp_path / "book", lm)
    facts = [Fact(prompt=f"City number {one} lies in", target="Rome") for one in range(number)]
    patches = [draw_patch(lm, one) for one in range(number)]
    for one, patch in zip(facts, patches, strict=True):
        book.add(lm, one, patch, verdict=WRITTEN)
    chance = random.Random(0)
    kept = list(range(number))
    for out in chance.sample(range(number), 12):
        book.undo(out + 1)
        kept.remove(out)
        never = reduce(WeightPatch.__add__, [patches[one] for one in kept])
        with never.apply(lm):
            expected = weights(lm)
        with book.apply(lm):
            assert weights(lm) == expected
    assert len(book) == number - 12
