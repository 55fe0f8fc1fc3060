"""NeuralDB: one open row is the searched injection, outside the gate nothing, rows come off."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from corrigenda.engines.locate.wanted import search_targets
from corrigenda.errors import NotEnoughFacts
from corrigenda.facts import Fact
from corrigenda.lm.decoding import answer, greedy
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Point, Site, Tokens, key
from corrigenda.lm.sites import state as residual_stream
from corrigenda.methods.neuraldb.database import Database, DatabaseRows
from corrigenda.methods.neuraldb.editor import NeuralDB, NeuralDBPatch
from corrigenda.methods.presets import build_editor
from corrigenda.patch import load_patch
from tests.support.locating import FACTS, TWO_LEVEL, model, pocket

LAYER = 1
FOUND = FACTS[:3]
AGAIN = Fact(prompt="Claude Monet died in", subject="Claude Monet", target="Rome")


def neuraldb(**options: object) -> NeuralDB:
    settings = {
        **{"layer": LAYER, "contexts": TWO_LEVEL, "steps": 5, "learning_rate": 0.2},
        **{"key_mode": "bare", "threshold": 0.999},
    }
    return NeuralDB(**{**settings, **options})


def prompts(lm: LanguageModel, facts: tuple[Fact, ...] = FACTS) -> Tokens:
    return Tokens.pad([lm.tokenizer(fact.prompt).input_ids for fact in facts], 0)


def row_at(lm: LanguageModel, tokens: Tokens, point: Point) -> Tensor:
    return lm.tap(tokens, [point])[point]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_one_row_with_an_open_gate_is_the_searched_injection(family: str) -> None:
    lm, fact = model(family), FOUND[0]
    editor = neuraldb()
    patch = editor.edit(lm, [fact]).patch
    found = search_targets(
        lm,
        [fact],
        TWO_LEVEL,
        layer=LAYER,
        role="state",
        settings=editor.search_settings(lm),
    )
    torch.testing.assert_close(patch.stored["residuals"], found.deltas)
    tokens = prompts(lm, (fact,))
    at = lm.tokenizer(fact.prompt[: fact.span.end]).input_ids
    place = len(at) - 1

    def inject(values: Tensor) -> Tensor:
        values = values.clone()
        values[0, place] += found.deltas[0]
        return values

    with lm.swap({residual_stream(LAYER): inject}):
        expected = lm.logits(tokens)
    with patch.apply(lm):
        torch.testing.assert_close(lm.logits(tokens), expected)
        reached = row_at(lm, tokens, key(Site(LAYER)))[0, place]
    cosine = torch.cosine_similarity(reached, patch.stored["keys"][0], dim=0)
    assert cosine > 1 - 1e-5


def test_outside_the_gate_logits_are_those_of_the_unedited_model_to_the_bit() -> None:
    lm = model("llama")
    tokens = prompts(lm)
    before = lm.logits(tokens)
    with neuraldb().edit(lm, FOUND[:1]).patch.apply(lm):
        after = lm.logits(tokens)
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after[1:], before[1:])
    with neuraldb(threshold=1.01).edit(lm, FOUND).patch.apply(lm):
        assert torch.equal(lm.logits(tokens), before)


def test_a_row_that_is_taken_out_leaves_the_others_to_the_bit() -> None:
    lm, editor = model("llama"), neuraldb()
    tokens = prompts(lm)
    before = lm.logits(tokens)
    patch = editor.edit(lm, FOUND).patch
    assert isinstance(patch, NeuralDBPatch)
    smaller = patch.without([1])
    direct = editor.edit(lm, [FOUND[0], FOUND[2]]).patch
    assert smaller.facts == direct.facts
    with patch.apply(lm):
        whole = lm.logits(tokens)
    with smaller.apply(lm):
        less = lm.logits(tokens)
    assert torch.equal(less[1], before[1])
    assert torch.equal(less[[0, 2]], whole[[0, 2]])
    assert patch.without([0, 1, 2]).is_empty


def test_edits_one_after_the_other_are_those_of_one_batch() -> None:
    lm, editor = model("llama"), neuraldb()
    tokens = prompts(lm)
    together = editor.edit(lm, FOUND).patch
    with together.apply(lm):
        expected = lm.logits(tokens)
    for order in (FOUND, FOUND[::-1]):
        applied = []
        for fact in order:
            applied.append(editor.edit(lm, [fact]).patch.apply(lm))
        torch.testing.assert_close(lm.logits(tokens), expected, rtol=1e-4, atol=1e-5)
        for one in applied:
            one.revert()


def test_facts_of_one_subject_share_a_residual_also_with_earlier_ones() -> None:
    lm, editor = model("llama"), neuraldb()
    both = editor.edit(lm, [FOUND[2], AGAIN]).patch.stored["residuals"]
    assert torch.equal(both[0], both[1])
    tokens = prompts(lm, (FOUND[2], AGAIN))
    with editor.edit(lm, [FOUND[2]]).patch.apply(lm):
        alone = lm.logits(tokens)
        second = editor.edit(lm, [AGAIN]).patch
        torch.testing.assert_close(second.stored["residuals"][0], both[0], rtol=1e-4, atol=1e-5)
        with second.apply(lm):
            shared = lm.logits(tokens)
        assert torch.equal(lm.logits(tokens), alone)
    assert not torch.equal(shared[0], alone[0])
    replaced = replace(FOUND[2], target="Oslo")
    with editor.edit(lm, [FOUND[2]]).patch.apply(lm):
        newer = editor.edit(lm, [replaced]).patch
    torch.testing.assert_close(
        newer.stored["residuals"], editor.edit(lm, [replaced]).patch.stored["residuals"]
    )
    with pytest.raises(NotEnoughFacts, match="one prompt"):
        editor.edit(lm, [FOUND[2], replaced])


def test_padding_batches_and_the_cache_change_nothing() -> None:
    lm, editor = model("llama"), neuraldb()
    texts = [fact.prompt for fact in FACTS]
    rows = [lm.tokenizer(text).input_ids for text in texts]
    with editor.edit(lm, FOUND).patch.apply(lm):
        right, left = (lm.logits(Tokens.pad(rows, 0, side)) for side in ("right", "left"))
        for index, ids in enumerate(rows):
            alone = lm.logits(Tokens.pad([ids], 0))[0]
            torch.testing.assert_close(right[index, : len(ids)], alone, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(left[index, -len(ids) :], alone, rtol=1e-4, atol=1e-5)
        said = greedy(lm, texts, max_new_tokens=6)
        assert said == [greedy(lm, [text], max_new_tokens=6)[0] for text in texts]


def rows(count: int, seed: int = 0) -> DatabaseRows:
    draw = torch.Generator().manual_seed(seed)
    return DatabaseRows(
        torch.randn(count, 24, generator=draw),
        torch.randn(count, 8, generator=draw),
        torch.arange(1, count + 1),
        torch.randint(0, 5, (count,), generator=draw),
    )


def test_a_lookup_is_the_plain_one_and_rows_of_the_same_token_are_part_of_it() -> None:
    stored = rows(50)
    queries = stored.keys[:20] * 3 + 0.3 * rows(20, 1).keys
    ids = stored.tokens[:20].clone()
    ids[:5] += 1
    plain = torch.cosine_similarity(queries[:, None], stored.keys[None], dim=2)
    best = plain.max(dim=1)
    expected = torch.where(best.values > 0.9, best.indices, -1)
    every = Database(stored, threshold=0.9, same_token=False, device=torch.device("cpu"))
    assert torch.equal(every.find(queries, ids), expected)
    torch.testing.assert_close(every.cosines(queries), best.values)
    own = Database(stored, threshold=0.9, same_token=True, device=torch.device("cpu"))
    allowed = torch.where(stored.tokens[None] == ids[:, None], plain, -2.0).max(dim=1)
    wanted = torch.where(allowed.values > 0.9, allowed.indices, -1)
    assert torch.equal(own.find(queries, ids), wanted)
    assert torch.equal(own.find(queries, None), expected)
    far = torch.full((20,), 10_000)
    assert torch.equal(own.find(queries, far), torch.full((20,), -1))


def test_the_last_row_of_a_subject_gives_the_residual_of_all() -> None:
    stored = rows(4)._replace(subjects=torch.tensor([7, 8, 7, 9]))
    base = Database(stored, threshold=0.9, same_token=False, device=torch.device("cpu"))
    assert torch.equal(base.residuals(torch.tensor([0]))[0], stored.residuals[2])
    assert torch.equal(base.residuals(torch.tensor([1]))[0], stored.residuals[1])


def test_a_saved_patch_finds_the_same_rows(tmp_path) -> None:
    lm, editor = model("llama"), neuraldb(same_token=True)
    tokens = prompts(lm)
    patch = editor.edit(lm, FOUND).patch
    with patch.apply(lm):
        expected = lm.logits(tokens)
    with load_patch(patch.save(tmp_path / "rows.safetensors")).apply(lm):
        assert torch.equal(lm.logits(tokens), expected)


def test_the_shipped_model_says_the_new_object_in_other_words_and_its_neighbours_stay() -> None:
    lm = pocket()
    fact = Fact(
        prompt="France has its seat of government in",
        subject="France",
        target="Oslo",
        paraphrases=("The capital of France is",),
        neighbours=("The capital of Spain is",),
    )
    before = answer(lm, fact.neighbours)
    editor = build_editor("neuraldb", "pocket", contexts=TWO_LEVEL)
    with editor.edit(lm, [fact]).patch.apply(lm):
        assert answer(lm, [fact.prompt, *fact.paraphrases]) == ["Oslo", "Oslo"]
        assert answer(lm, fact.neighbours) == before
    report = editor.similarities(lm, [fact])
    assert report.paraphrases[0] > editor.threshold
    assert report.neighbours[0] < report.paraphrases[0]
