"""A fix kept in a book: one correction a fact, and a second run that changes nothing."""

from __future__ import annotations

from pathlib import Path

import torch

import corrigenda as cg
from corrigenda.books import Book
from corrigenda.fixing.fix import FixResult
from corrigenda.fixing.keeping import split_by_fact
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.patch import WeightPatch
from corrigenda.patch.changes import Dense
from corrigenda.patch.compare import add_up
from corrigenda.patch.header import Header
from tests.support.tiny_on_disk import command

SITE = cg.Site(0, "mlp.down")


def fact(number: int) -> cg.Fact:
    return cg.Fact(prompt=f"Number {number} is", target="x", subject=f"{number}")


def factors(rank: int, seed: int) -> WeightPatch:
    draw = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(size, rank, generator=draw) for size in (4, 3))
    return WeightPatch({SITE: LowRank(left, right)}, Header(method="memit"))


def test_an_edit_is_the_sum_of_its_facts() -> None:
    """A retry of two facts goes to these, column by column."""
    facts = [fact(number) for number in range(3)]
    whole, again = factors(3, seed=0), factors(2, seed=1)
    found = split_by_fact([whole, again], [facts, [facts[0], facts[2]]])
    assert [own for own, _ in found] == [(one,) for one in facts]
    ranks = [patch.changes[SITE].rank for _, patch in found]
    assert ranks == [2, 1, 2]
    total = add_up([patch for _, patch in found]).changes[SITE].to_dense()
    wanted = whole.changes[SITE].to_dense() + again.changes[SITE].to_dense()
    assert torch.allclose(total, wanted)


def test_facts_of_a_patch_that_is_one_stay_together() -> None:
    facts = [fact(number) for number in range(3)]
    dense = WeightPatch({SITE: Dense(torch.ones(4, 3))}, Header(method="ft-m"))
    found = split_by_fact([factors(3, seed=0), dense], [facts, facts[1:]])
    assert [own for own, _ in found] == [(facts[0],), (facts[1], facts[2])]


def test_a_second_run_with_the_same_book_changes_nothing(
    pocket: LanguageModel, fixed: FixResult, file: Path, tmp_path: Path
) -> None:
    book = tmp_path / "book"
    arguments = ("fix", "pocket", file, "-m", "memit", "--yes", "--book", book, "--json")
    first = command(*arguments, "-o", tmp_path / "one")
    assert first.code == 1, first.err
    assert first.json["kept"] == 3
    assert first.json["counts"] == {
        "corrected": 3,
        "already true": 1,
        "duplicate": 1,
        "contradiction": 1,
        "unreadable": 2,
    }
    written = {one.name for one in (tmp_path / "one").iterdir()}
    assert written == {"patch.safetensors", "card.md", "fates.json"}
    state = Book.open(book).state
    with Book.open(book).apply(pocket):
        for one in fixed.facts:
            assert cg.answer(pocket, one.prompt).startswith(one.target)
    second = command(*arguments, "-o", tmp_path / "two")
    assert second.json["kept"] == 0
    # The duplicate holds by the book, not by an earlier line.
    assert second.json["counts"]["already true"] == 5
    assert "corrected" not in second.json["counts"]
    assert Book.open(book).state == state
    assert not (tmp_path / "two" / "patch.safetensors").exists()
