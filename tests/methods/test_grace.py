"""GRACE: balls that come, grow and split, values at one place, and nothing anywhere else."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import corrigenda as cg
from corrigenda.almanac.exam import load_exam
from corrigenda.engines.answer_loss import AnswerPasses
from corrigenda.engines.gradients import labelled_rows
from corrigenda.errors import NonFinite, UnknownSite
from corrigenda.facts import Fact
from corrigenda.linalg.nearest import NearestSearch
from corrigenda.lm.decoding import answer, score
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Tokens, value
from corrigenda.lm.spans import encode
from corrigenda.methods.grace.codebook import (
    ADDED,
    SPLIT,
    TAKEN_OVER,
    Codebook,
    CodebookRecords,
    place_facts,
)
from corrigenda.methods.grace.editor import Grace, _to_records
from corrigenda.methods.presets import build_editor
from corrigenda.patch import load_patch
from corrigenda.testing.tiny import tiny_model
from tests.support.routing import FACTS, OTHERS, PROMPTS, generated, logits, uncached

FAMILIES = ("gpt2", "llama", "gemma2")


@cache
def model(family: str = "llama", dtype: torch.dtype = torch.float32) -> LanguageModel:
    return tiny_model(family, dtype=dtype)


def grace(**options: object) -> Grace:
    return Grace(**{"layer": 1, "steps": 4, "radius": 0.3, **options})


def records(keys, targets, *, radius=1.0, book=None, right=None) -> tuple[CodebookRecords, list]:
    keys = torch.tensor(keys)
    right = [False] * len(keys) if right is None else right
    plan = place_facts(book, keys, targets, right, radius=radius, noise=[1e-4] * len(keys))
    done = [index for index, one in enumerate(plan) if one.act is not None]
    # Values say which record they belong to.
    values = torch.arange(len(keys)).float()[:, None] + (0 if book is None else 100)
    return CodebookRecords(**_to_records(done, plan, keys, values, targets)), plan


def codebook_of(*parts: CodebookRecords) -> Codebook:
    return Codebook.of(*(part._asdict() for part in parts))


A, B = (1, 2), (3,)


def test_a_ball_that_touches_none_is_added() -> None:
    own, plan = records([[0.0, 0.0], [2.5, 0.0]], [A, B])
    assert [one.act for one in plan] == [ADDED, ADDED]
    book = codebook_of(own)
    assert len(book) == 2
    assert book.radii.tolist() == [1.0, 1.0]


def test_the_same_target_expands_and_adds_no_entry() -> None:
    first, _ = records([[0.0, 0.0]], [A])
    book = codebook_of(first)
    second, plan = records([[1.5, 0.0]], [A], book=book)
    assert [one.act for one in plan] == [TAKEN_OVER]
    both = codebook_of(first, second)
    assert len(both) == 1
    assert float(both.radii) == pytest.approx(1.5, abs=1e-3)
    assert float(both.radii) > 1.5
    inside, plan = records([[0.5, 0.0]], [A], book=book)
    assert [one.act for one in plan] == [TAKEN_OVER]
    assert len(codebook_of(first, inside)) == 1
    assert float(codebook_of(first, inside).radii) == 1.0


@pytest.mark.parametrize("distance", [0.2, 1.0, 1.9])
def test_another_target_splits_into_balls_that_do_not_touch(distance: float) -> None:
    own, plan = records([[0.0, 0.0], [distance, 0.0]], [A, B])
    assert [one.act for one in plan] == [ADDED, SPLIT]
    book = codebook_of(own)
    assert len(book) == 2
    assert float(book.radii.sum()) < distance + 1e-9
    assert book.hits(NearestSearch(book.keys).search(own.keys)).tolist() == [0, 1]


def test_targets_are_compared_token_by_token() -> None:
    _, plan = records([[0.0], [1.0], [0.9]], [(1, 2), (2, 1), (2, 1)])
    assert [one.act for one in plan] == [ADDED, SPLIT, TAKEN_OVER]


def test_a_prompt_edited_again_takes_over_its_entry() -> None:
    first, _ = records([[5.0, 1.0]], [A])
    second, plan = records([[5.0, 1.0]], [B], book=codebook_of(first))
    assert [one.act for one in plan] == [TAKEN_OVER]
    both = codebook_of(first, second)
    assert len(both) == 1
    assert both.target(0) == B
    assert float(both.radii) == 1.0
    assert both.values(torch.tensor([0])).item() == 100.0


def test_what_is_right_and_in_no_ball_is_left_alone() -> None:
    first, plan = records([[0.0], [0.5], [9.0]], [A, A, B], right=[False, True, True])
    assert [one.act for one in plan] == [ADDED, TAKEN_OVER, None]
    assert len(first.ids) == 2


def test_what_an_edit_did_to_other_balls_goes_with_it() -> None:
    one, _ = records([[0.0, 0.0]], [A])
    two, plan = records([[1.0, 0.0]], [B], book=codebook_of(one))
    assert plan[0].act == SPLIT
    three, plan = records([[-0.8, 0.0]], [A], book=codebook_of(one, two))
    assert plan[0].act == TAKEN_OVER
    assert codebook_of(one, two).radii.tolist() == pytest.approx([0.5, 0.5], abs=1e-4)
    assert codebook_of(one, two, three).radii.tolist() == pytest.approx([0.8, 0.5], abs=1e-3)
    assert codebook_of(one, three).radii.tolist() == [1.0]
    assert codebook_of(one).radii.tolist() == [1.0]
    alone = codebook_of(two, three)
    assert alone.radii.tolist() == [0.5, 1.0]
    assert alone.target(1) == A
    # Put back behind the others, it is their entry again.
    assert sorted(codebook_of(two, three, one).radii.tolist()) == pytest.approx(
        [0.5, 0.8], abs=1e-3
    )


def test_the_order_of_records_decides_ties_only() -> None:
    own, _ = records([[0.0], [4.0], [9.0]], [A, B, A])
    queries = torch.tensor([[0.1], [4.2], [8.5], [6.5], [30.0]])
    hits = codebook_of(own).hits(NearestSearch(own.keys).search(queries)).tolist()
    back = NearestSearch(own.keys.flip(0))
    flipped = codebook_of(own._replace(radii=own.radii.flip(0))).hits(back.search(queries)).tolist()
    assert [hit if hit < 0 else 2 - hit for hit in flipped] == hits == [0, 1, 2, -1, -1]
    twice = NearestSearch(torch.zeros(2, 1)).search(torch.zeros(1, 1))
    assert twice.indices.tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_at_a_key_the_output_is_the_value_and_elsewhere_the_models_own(
    family: str, dtype: torch.dtype
) -> None:
    lm, editor = model(family, dtype), grace()
    patch = editor.edit(lm, FACTS).patch
    site = editor.site(lm)
    before = logits(lm)
    tokens = Tokens.pad([encode(lm, prompt).ids for prompt in PROMPTS], 0)
    plain = lm.tap(tokens, [value(site)])[value(site)]
    with patch.apply(lm):
        taken = lm.tap(tokens, [value(site)])[value(site)]
        after = logits(lm)
    at = tokens.lengths - 1
    for row in range(len(FACTS)):
        assert torch.equal(taken[row, at[row]], patch.stored["values"][row].to(dtype))
        taken[row, at[row]] = plain[row, at[row]]
        assert not torch.equal(after[row], before[row])
    assert torch.equal(taken, plain)
    assert torch.equal(after[len(FACTS) :], before[len(FACTS) :])


@pytest.mark.parametrize("replace", ["last", "prompt", "all"])
def test_padding_company_and_cache_make_no_difference(replace: str) -> None:
    lm = model()
    patch = grace(replace=replace, steps=8).edit(lm, FACTS).patch
    rows = [encode(lm, prompt).ids for prompt in PROMPTS]
    with patch.apply(lm):
        together = logits(lm)
        for row, prompt in enumerate(PROMPTS):
            torch.testing.assert_close(logits(lm, [prompt])[0], together[row])
        left = lm.logits(Tokens.pad(rows, 0, "left"))[:, -1]
        torch.testing.assert_close(left, together, rtol=1e-4, atol=1e-4)
        wanted = [uncached(lm, prompt, 4) for prompt in PROMPTS]
        assert generated(lm, PROMPTS, 4) == wanted
    assert generated(lm, PROMPTS, 4) != wanted


def test_replaced_everywhere_the_answer_is_replaced_too() -> None:
    lm = model()
    editor = grace(replace="all")
    patch, site = editor.edit(lm, FACTS[:1]).patch, editor.site(lm)
    seen = []
    with patch.apply(lm), lm.swap({value(site): lambda output: seen.append(output) or output}):
        generated(lm, PROMPTS[:1], 3)
    for output in seen:
        assert (output == patch.stored["values"][0]).all()
    assert [output.shape[1] for output in seen][1:] == [1, 1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("replace", ["last", "all"])
def test_a_score_reads_the_key_where_the_prompt_ends(family: str, replace: str) -> None:
    lm = model(family)
    patch = grace(replace=replace, steps=3, stop_loss=0.0).edit(lm, FACTS).patch
    best = [min(losses) for losses in patch.header.notes["losses"]]
    with patch.apply(lm):
        scores = score(lm, [(fact.prompt, fact.target) for fact in FACTS])
    assert [-one.mean for one in scores] == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("from_end", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_later_blocks_alone_give_what_the_whole_model_gives(family: str, from_end: bool) -> None:
    lm = model(family)
    rows = labelled_rows(lm, FACTS)
    whole = AnswerPasses(lm, rows, 0, from_prompt_end=from_end)
    part = AnswerPasses(lm, rows, 2, from_prompt_end=from_end)
    for chosen in (None, [2, 0]):
        ours, theirs = part.scores(chosen), whole.scores(chosen)
        torch.testing.assert_close(ours.losses, theirs.losses, rtol=1e-4, atol=1e-4)
        assert torch.equal(ours.owners, theirs.owners)
        assert ours.right == theirs.right
        assert ours.means.shape == (3 if chosen is None else 2,)


def test_company_in_training_changes_nothing() -> None:
    lm, editor = model(), grace(steps=3)
    together = editor.edit(lm, FACTS).patch
    for row, fact in enumerate(FACTS):
        alone = editor.edit(lm, [fact]).patch
        torch.testing.assert_close(
            alone.stored["values"][0], together.stored["values"][row], rtol=1e-2, atol=1e-2
        )
        assert alone.stored["ids"].shape == (1,)


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_undo_removes_exactly_one_edit(gone: int) -> None:
    lm, editor = model(), grace()
    base = logits(lm)
    applied = []
    for fact in FACTS:
        applied.append(editor.edit(lm, [fact]).patch.apply(lm))
    full = logits(lm)
    applied[gone].revert()
    after = logits(lm)
    for row in range(len(PROMPTS)):
        wanted = base if row == gone else full
        assert torch.equal(after[row], wanted[row])
    lm.patches.clear()  # type: ignore[attr-defined]
    assert torch.equal(logits(lm), base)


def test_an_edit_that_shares_an_entry_holds_without_it() -> None:
    lm, wide = model(), grace(radius=1e4)
    first, second = FACTS[0], Fact(prompt="Rome is in the city of", target="Rome")
    prompts = [first.prompt, second.prompt, *OTHERS]
    base = logits(lm, prompts)
    one = wide.edit(lm, [first]).patch.apply(lm)
    two = wide.edit(lm, [second]).patch
    assert two.header.notes["acts"] == ["expanded"]
    on_top = two.apply(lm)
    assert len(lm.patches) == 2
    one.revert()
    assert two.stored["radii"].tolist() == [1e4]
    assert not torch.equal(logits(lm, prompts)[1], base[1])
    on_top.revert()
    assert torch.equal(logits(lm, prompts), base)


def test_two_edits_of_one_prompt_come_off_in_any_order() -> None:
    lm, editor = model(), grace()
    again = Fact(prompt=FACTS[0].prompt, target="Berlin")
    base = logits(lm)
    one = editor.edit(lm, FACTS[:1]).patch
    with one.apply(lm):
        with_one = logits(lm)
        two = editor.edit(lm, [again]).patch
        assert two.header.notes["acts"] == ["expanded"]
        assert two.header.notes["notices"] == [
            notice for notice in two.header.notes["notices"] if "out of reach" not in notice
        ]
        with two.apply(lm):
            with_both = logits(lm)
        assert torch.equal(logits(lm), with_one)
    assert not torch.equal(with_both[0], with_one[0])
    applied = one.apply(lm), two.apply(lm)
    applied[0].revert()
    assert torch.equal(logits(lm), with_both)
    applied[1].revert()
    assert torch.equal(logits(lm), base)


def test_what_falls_out_of_a_ball_is_named() -> None:
    lm = model()
    keys = grace().distances(lm, [Fact(prompt="a", target="b", paraphrases=("The a",))])
    apart = keys.paraphrases[0]
    editor = grace(radius=apart)
    facts = [Fact(prompt="a", target="b"), Fact(prompt="The a", target="b", name="second")]
    first = editor.edit(lm, facts).patch
    assert first.header.notes["acts"] == ["added", "expanded"]
    with first.apply(lm):
        near = Fact(prompt="In a", target="c")
        notes = editor.edit(lm, [near]).patch.header.notes
        assert notes["acts"] in (["split"], ["added"])
    again = editor.edit(lm, [*facts, Fact(prompt="The a", target="c")]).patch
    assert again.header.notes["acts"] == ["added", "expanded", "split"]
    assert any("second: out of reach" in notice for notice in again.header.notes["notices"])


def test_patches_of_other_layers_keep_their_own_books() -> None:
    lm = model()
    one = grace(layer=1).edit(lm, FACTS[:1]).patch
    with one.apply(lm):
        two = grace(layer=2).edit(lm, FACTS[1:2]).patch
        assert two.header.notes["nearest"] == [1e30]
        with two.apply(lm):
            both = logits(lm)
    base = logits(lm)
    assert [torch.equal(both[row], base[row]) for row in range(3)] == [False, False, True]


def test_two_models_at_once(tmp_path) -> None:
    lm, twin = model(), tiny_model("llama")
    patch = grace().edit(lm, FACTS).patch
    loaded = load_patch(patch.save(tmp_path / "patch.safetensors"))
    base = logits(lm)
    with patch.apply(lm):
        changed = logits(lm)
        with loaded.apply(twin):
            assert torch.equal(logits(twin), changed)
        assert torch.equal(logits(twin), base)
        assert torch.equal(logits(lm), changed)


@pytest.mark.parametrize("start", ["cold", "warm"])
def test_first_values(start: str) -> None:
    lm, editor = model(), grace(start=start, steps=1, learning_rate=1e-12)
    patch = editor.edit(lm, FACTS).patch
    values = patch.stored["values"]
    if start == "cold":
        assert 0.0 <= float(values.min()) < 0.2
        assert 0.8 < float(values.max()) < 1.0
        assert not torch.equal(
            grace(seed=1, steps=1).edit(lm, FACTS).patch.stored["values"], values
        )
    else:
        with patch.apply(lm):
            changed = logits(lm)
        torch.testing.assert_close(changed, logits(lm), rtol=1e-3, atol=1e-3)


def test_a_mixture_of_experts_and_a_missing_block_are_refused() -> None:
    with pytest.raises(UnknownSite, match="CG303"):
        grace().edit(tiny_model("qwen3_moe"), FACTS)
    with pytest.raises(UnknownSite, match="CG303"):
        grace(layer=9).edit(model(), FACTS)
    assert Grace().site(model()).layer == model().num_layers - 2
    assert Grace().sites(model()) == ()


def test_a_model_without_finite_losses_is_refused() -> None:
    lm = tiny_model("llama")
    lm.model.get_output_embeddings().weight.data.fill_(torch.nan)
    with pytest.raises(NonFinite, match=r"CG201(.|\n)*Space Needle"):
        grace().edit(lm, FACTS[:1])
    assert not lm.patches


@cache
def pocket() -> LanguageModel:
    return cg.load("pocket")


def test_on_the_pocket_model_facts_hold_and_neighbours_stay() -> None:
    lm, editor = pocket(), build_editor("grace", "pocket")
    cases = load_exam(edits=2, size=1, recall=1, seed=11).edits
    facts = [case.fact for case in cases]
    kept = [
        text for case in cases for text in (*case.fact.neighbours[:3], *case.fact.same_subject[:3])
    ]
    before = answer(lm, kept)
    patch = editor.edit(lm, facts).patch
    with patch.apply(lm):
        said = answer(lm, [fact.prompt for fact in facts])
        after = answer(lm, kept)
        again = editor.edit(lm, facts[:1]).patch
    assert said == [fact.target for fact in facts]
    assert sum(one == two for one, two in zip(before, after, strict=True)) >= len(kept) - 1
    assert again.header.notes["acts"] == ["expanded"]
    assert again.header.notes["stop"] == ["right already"]


def test_what_the_pocket_model_knows_is_left_alone() -> None:
    lm = pocket()
    fact = load_exam(edits=1, size=1, recall=1, seed=11).edits[0].fact
    known = Fact(prompt=fact.prompt, target=str(fact.before))
    patch = build_editor("grace", "pocket").edit(lm, [known]).patch
    assert patch.header.notes["status"] == ["true already"]
    base = logits(lm)
    with patch.apply(lm):
        assert torch.equal(logits(lm), base)
