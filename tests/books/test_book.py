"""A book is the sum of its patches; one of them goes out and what is left never had it."""

from __future__ import annotations

import json
import subprocess
from functools import reduce
from pathlib import Path

import pytest

from corrigenda.books import Book, Verdict
from corrigenda.books.records import state_of
from corrigenda.errors import (
    ConflictingCorrections,
    DamagedBook,
    NewerFormat,
    NotABook,
    NotApplied,
    UnknownCorrection,
    WrongBase,
)
from corrigenda.facts import Fact
from corrigenda.patch import load_patch
from corrigenda.patch.weights import WeightPatch
from corrigenda.testing.tiny import tiny_model
from tests.books.conftest import WRITTEN, draw_patch, fact, weights


def test_new_book_is_empty_and_names_its_model(book, lm):
    again = Book.open(book.folder)
    assert len(again) == 0
    assert (again.base.name, again.base.digest) == (lm.name, lm.digest())
    assert again.patch().is_empty
    before = weights(lm)
    with again.apply(lm):
        assert weights(lm) == before


def test_new_book_may_lie_in_a_folder_under_git(lm, tmp_path):
    (tmp_path / ".git").mkdir()
    assert len(Book.new(tmp_path, lm)) == 0


def test_a_folder_is_no_book_twice_nor_without_its_file(book, lm, tmp_path):
    with pytest.raises(NotABook, match="holds a book already"):
        Book.new(book.folder, lm)
    with pytest.raises(NotABook, match="no book"):
        Book.open(tmp_path)


def test_book_is_made_for_the_model_without_its_patches(lm, tmp_path):
    digest = lm.digest()
    with draw_patch(lm, 1).apply(lm):
        assert Book.new(tmp_path / "b", lm).base.digest == digest


def test_added_correction_is_in_a_file_of_its_own(book, add):
    added = add(book, 5)
    assert added.number == 1
    text = (book.folder / "corrections" / f"{added.name}.json").read_text()
    record = json.loads(text)
    assert record["facts"] == [{"prompt": "City number 5 lies in", "target": "Rome"}]
    assert (record["method"], record["settings"]) == ("drawn", {"seed": 5})
    assert Book.open(book.folder).corrections == (added,)
    patch = load_patch(book.folder / "patches" / f"{added.id}.safetensors")
    assert patch.digest() == added.patch == record["patch"]


def test_book_applied_is_the_sum_of_its_patches(book, add, lm):
    patches = [draw_patch(lm, number) for number in range(6)]
    for number in range(6):
        add(book, number)
    with reduce(WeightPatch.__add__, patches).apply(lm):
        total = weights(lm)
    pristine = weights(lm)
    with book.apply(lm):
        assert weights(lm) == total != pristine
    assert weights(lm) == pristine


@pytest.mark.parametrize("out", range(5))
def test_undo_leaves_the_book_that_never_had_it(book, add, lm, tmp_path, out):
    other = Book.new(tmp_path / "other", lm)
    for number in range(5):
        add(book, number)
        if number != out:
            add(other, number)
    gone = book.undo(out + 1)
    assert gone.facts[0].prompt == f"City number {out} lies in"
    with other.apply(lm):
        expected = weights(lm)
    with book.apply(lm):
        assert weights(lm) == expected
    assert book.patch().digest() == other.patch().digest()
    assert not list(book.folder.glob(f"patches/{gone.id}*"))
    assert [entry.undone for entry in book.log()].count(True) == 1


def test_undone_correction_can_come_in_again(book, add, lm):
    first = add(book, 1)
    add(book, 2)
    book.undo(first.id)
    again = add(book, 1)
    assert (again.id, again.number) == (first.id, 3)
    assert not any(entry.undone for entry in book.log())


def test_made_on_top_of_another_keeps_its_patch_and_is_named(book, lm):
    below = book.add(lm, fact(1), draw_patch(lm, 1), verdict=WRITTEN)
    with book.apply(lm):
        patch = draw_patch(lm, 2)
    assert patch.header.prerequisites == (below.patch,)
    above = book.add(lm, fact(2), patch, verdict=WRITTEN)
    alone = book.add(lm, fact(3), draw_patch(lm, 3), verdict=WRITTEN)
    assert (bool(above.made_on), alone.made_on) == (True, "")
    assert book.patch(above.id).header.prerequisites == ()
    assert book.status().disturbed == ()
    book.undo(below.id)
    assert book.status().disturbed == (above.name,)
    with (patch + draw_patch(lm, 3)).apply(lm, force=True):
        expected = weights(lm)
    with book.apply(lm):
        assert weights(lm) == expected


def test_made_on_top_of_a_sum_of_several(book, add, lm):
    add(book, 1)
    add(book, 2)
    with book.apply(lm):
        patch = draw_patch(lm, 3)
    third = book.add(lm, fact(3), patch, verdict=WRITTEN)
    assert third.made_on == state_of(one.id for one in book.corrections[:2])
    assert book.status().disturbed == ()


def test_made_on_top_of_what_the_book_lacks_is_refused(book, add, lm):
    add(book, 1)
    with draw_patch(lm, 7).apply(lm):
        patch = draw_patch(lm, 2)
    with pytest.raises(WrongBase, match="not in the book"):
        book.add(lm, fact(2), patch, verdict=WRITTEN)
    assert len(book) == 1


def test_another_model_is_refused(book, add):
    add(book, 1)
    other = tiny_model("llama", layers=2, seed=1)
    for refused in (
        lambda: book.apply(other),
        lambda: book.check(other),
        lambda: book.add(other, fact(2), draw_patch(other, 2), verdict=WRITTEN),
        lambda: book.make(other, fact(2)),
    ):
        with pytest.raises(WrongBase, match="corrects tiny-llama"):
            refused()
    assert book.status(other).fits is False
    assert not book.status(other).is_sound
    with book.apply(other, force=True):
        pass


def test_patch_of_another_model_is_refused(book, lm):
    other = tiny_model("llama", layers=2, seed=1)
    with pytest.raises(WrongBase, match="was made on"):
        book.add(lm, fact(1), draw_patch(other, 1), verdict=WRITTEN)
    assert len(book) == 0


def test_same_patch_is_not_applied_twice(book, add, lm):
    add(book, 1)
    with book.apply(lm), pytest.raises(NotApplied):
        draw_patch(lm, 1).apply(lm)


def test_question_is_answered_once(book, add, lm):
    one = add(book, 1, paraphrases=("In which country is city number 1?",))
    with pytest.raises(ConflictingCorrections, match=f"already: correction {one.name}"):
        add(book, 1)
    for prompt in ("city number 1  lies in", "In which country is city number 1?"):
        other = Fact(prompt=prompt, target="Oslo")
        with pytest.raises(ConflictingCorrections, match=f"{one.name} says Rome"):
            book.add(lm, other, draw_patch(lm, 2), verdict=WRITTEN)
    assert book.corrections == (one,)


def test_correction_without_a_patch_is_asked_too(book, lm):
    kept = book.add(lm, fact(1), None, verdict=Verdict(outcomes=("already true",)))
    assert kept.patch == ""
    assert book.patch().is_empty
    assert book.status().without_patch == (kept.name,)
    assert len(book.check(lm).results) == 1


def test_several_facts_are_one_correction(book, lm):
    both = book.add(lm, [fact(1), fact(2)], draw_patch(lm, 1), verdict=WRITTEN)
    assert both.label.endswith("(and 1 more)")
    assert book.status().facts == 2
    assert len(book.check(lm).results[0].verdict.outcomes) == 2


def test_find_takes_numbers_and_ids(book, add):
    added = [add(book, number) for number in (1, 2)]
    for name in (2, "2", "0002", added[1].id, added[1].id[:5], added[1].name):
        assert book.find(name) == added[1]
    for name in (3, "nothing", added[1].id[:3] if not added[1].id[:3].isdecimal() else "zzz"):
        with pytest.raises(UnknownCorrection, match="no correction"):
            book.find(name)


def test_number_that_two_branches_gave_is_ambiguous(book, add, lm, tmp_path):
    other = Book.new(tmp_path / "other", lm)
    mine, theirs = add(book, 1), add(other, 2)
    for folder, name in (("corrections", f"{theirs.name}.json"),):
        (book.folder / folder / name).write_bytes((other.folder / folder / name).read_bytes())
    patch = f"patches/{theirs.id}.safetensors"
    (book.folder / patch).write_bytes((other.folder / patch).read_bytes())
    assert {one.id for one in book.corrections} == {mine.id, theirs.id}
    with pytest.raises(UnknownCorrection, match="names 2 corrections"):
        book.undo(1)
    assert book.undo(theirs.id) == theirs


def test_check_asks_again_and_notes_what_changed(book, lm):
    added = book.add(lm, fact(1), draw_patch(lm, 1), verdict=WRITTEN)
    assert not book.status().is_checked
    found = book.check(lm)
    assert not found.holds
    (result,) = found.changed
    assert (result.correction.id, result.verdict.outcomes) == (added.id, ("failed",))
    assert result.verdict.shares == {"prompt": "0/1"}
    assert book.status().failing == (added.name,)
    assert book.status().is_checked
    assert book.check(lm).changed == ()
    book.add(lm, fact(2), draw_patch(lm, 2), verdict=WRITTEN)
    assert not book.status().is_checked


def test_check_of_a_forced_model_notes_nothing(book, add):
    add(book, 1)
    other = tiny_model("llama", layers=2, seed=1)
    assert len(book.check(other, force=True).changed) == 1
    assert book.status().failing == ()
    assert not book.status().is_checked


def test_verdict_is_asked_where_none_is_given(book, lm):
    assert book.add(lm, fact(1), draw_patch(lm, 1)).verdict.outcomes == ("failed",)
    assert not lm.patches


def damage(book, name, change):
    (file,) = book.folder.glob(name)
    change(file)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("patches/*", lambda file: file.unlink(), "is missing"),
        ("patches/*", lambda file: file.write_bytes(file.read_bytes()[:-1]), "cannot be read"),
        ("corrections/*", lambda file: file.write_text("{}"), "not what was written"),
        ("corrections/*", lambda file: file.write_text("<<<<<<< a\n"), "marks of a merge"),
        (
            "corrections/*",
            lambda file: file.write_text(file.read_text().replace("Rome", "Oslo")),
            "not those it was written for",
        ),
        ("book.toml", lambda file: file.write_text("format_version = 1\n"), "not what was"),
    ],
)
def test_damage_is_named(book, add, lm, name, change, message):
    add(book, 1)
    damage(book, name, change)
    before = weights(lm)
    with pytest.raises(DamagedBook, match=message):
        Book.open(book.folder).apply(lm)
    assert weights(lm) == before


def test_patch_of_another_correction_is_named(book, add, lm):
    first, second = add(book, 1), add(book, 2)
    files = [book.folder / "patches" / f"{one.id}.safetensors" for one in (first, second)]
    files[0].write_bytes(files[1].read_bytes())
    with pytest.raises(DamagedBook, match="holds another patch"):
        book.apply(lm)
    assert len(book.status().problems) == 1


def test_newer_book_is_refused(book):
    damage(
        book,
        "book.toml",
        lambda file: file.write_text(file.read_text().replace("version = 1", "version = 9")),
    )
    with pytest.raises(NewerFormat, match="format version 9"):
        Book.open(book.folder)


def test_paraphrases_may_be_edited_by_hand(book, add):
    added = add(book, 1, paraphrases=("Where is city number 1?",))
    file = book.folder / "corrections" / f"{added.name}.json"
    file.write_text(file.read_text().replace("Where is", "Whereabouts is"))
    assert book.corrections[0].facts[0].paraphrases == ("Whereabouts is city number 1?",)


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    ran = subprocess.run(
        ["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True
    )
    return ran.stdout


def test_log_reads_author_and_date_from_git(book, add):
    git(book.folder, "init", "-q")
    first = add(book, 1)
    add(book, 2)
    assert {entry.added for entry in book.log()} == {None}
    git(book.folder, "add", ".")
    git(book.folder, "commit", "-q", "-m", "Two corrections")
    book.undo(first.id)
    git(book.folder, "add", ".")
    git(book.folder, "commit", "-q", "-m", "Undo one")
    add(book, 3)
    entries = book.log()
    assert [entry.undone for entry in entries] == [True, False, False]
    assert [entry.added.author if entry.added else "" for entry in entries] == ["Ada", "Ada", ""]
    assert entries[0].removed.hash != entries[0].added.hash
    listed = git(book.folder, "ls-files")
    assert "book.toml" in listed
    assert "lock" not in listed


def test_branches_of_a_book_merge_in_git(book, add, lm):
    git(book.folder, "init", "-q", "-b", "trunk")
    for number in range(3):
        add(book, number)
    book.check(lm)
    git(book.folder, "add", ".")
    git(book.folder, "commit", "-q", "-m", "Three")
    git(book.folder, "switch", "-q", "-c", "side")
    book.undo(2)
    add(book, 7)
    git(book.folder, "add", ".")
    git(book.folder, "commit", "-q", "-m", "Side")
    git(book.folder, "switch", "-q", "trunk")
    add(book, 8)
    book.check(lm)
    git(book.folder, "add", ".")
    git(book.folder, "commit", "-q", "-m", "Trunk")
    git(book.folder, "merge", "-q", "side")
    prompts = [one.facts[0].prompt.split()[2] for one in book.corrections]
    assert prompts[:2] == ["0", "2"]
    assert sorted(prompts[2:]) == ["7", "8"]
    assert not book.status().is_checked
    assert book.status().is_sound
