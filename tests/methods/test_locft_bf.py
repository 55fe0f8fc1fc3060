"""LocFT-BF: epochs over shuffled mini-batches, whatever order the facts come in."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import corrigenda as cg
from corrigenda.almanac.exam import draw_edits
from corrigenda.almanac.world import load_world
from corrigenda.errors import BadConfig
from corrigenda.lm.sites import Site
from corrigenda.methods.finetune import training
from corrigenda.methods.finetune.editor import FtM, LocftBf
from corrigenda.methods.presets import build_editor
from corrigenda.patch.changes import dense
from corrigenda.pocket import card
from tests.support.locating import FACTS, model

LAYER = 1


def locft(**options: object) -> LocftBf:
    return LocftBf(**{"layer": LAYER, "epochs": 4, "batch_size": 2, **options})


def change(editor: LocftBf | FtM, facts=FACTS) -> torch.Tensor:
    return dense(editor.edit(model("llama"), facts).patch.changes[Site(LAYER)])


def test_the_order_given_does_not_matter_and_the_seed_does() -> None:
    expected = change(locft())
    assert torch.equal(change(locft(), FACTS[::-1]), expected)
    assert torch.equal(change(locft(), (FACTS[2], FACTS[0], FACTS[3], FACTS[1])), expected)
    assert not torch.equal(change(locft(seed=1)), expected)


def test_every_epoch_sees_every_fact_once_in_an_order_of_its_own() -> None:
    lm, editor = model("llama"), locft()
    examples = editor.examples(lm, FACTS)
    orders = []
    for epoch in range(6):
        parts = list(training._draw_batches(examples, editor.training, epoch))
        assert [len(part) for part in parts] == [2, 2]
        orders.append([index for part in parts for index in part])
        assert sorted(orders[-1]) == [0, 1, 2, 3]
    assert len({tuple(order) for order in orders}) > 2
    in_order = editor.training._replace(shuffle=None)
    assert list(training._draw_batches(examples, in_order, 3)) == [[0, 1], [2, 3]]


def test_in_one_mini_batch_and_without_the_end_it_is_ft_m() -> None:
    options = {"batch_size": len(FACTS), "epochs": 4, "layer": LAYER}
    one = change(locft(end_of_text=False, **options))
    other = change(FtM(**options))
    assert (one - other).norm() <= 1e-3 * other.norm()


def test_the_end_of_text_is_a_label_and_no_input() -> None:
    lm = model("gpt2")
    plain = locft(end_of_text=False).examples(lm, FACTS)
    for one, ended in zip(plain, locft().examples(lm, FACTS), strict=True):
        assert ended.labels == (*one.labels, lm.tokenizer.eos_token_id)
        assert ended.ids == (*one.ids, one.labels[-1])
        assert ended.prompt_last == one.prompt_last


def test_a_tokenizer_without_an_end_is_named() -> None:
    lm = model("gpt2")
    without = SimpleNamespace(tokenizer=SimpleNamespace(eos_token_id=None), name="endless")
    with pytest.raises(BadConfig, match=r"CG502.*ends a text"):
        locft().examples(without, FACTS)
    assert locft(end_of_text=False).examples(lm, FACTS)


def test_many_facts_at_once_on_the_pocket_model() -> None:
    lm = cg.load("pocket", dtype=torch.float32)
    editor = build_editor("locft-bf", lm.name)
    figures = card.try_batch_edit(lm, editor, draw_edits(load_world(), 16, seed=5))
    assert figures.efficacy is not None
    assert figures.efficacy >= 0.75
