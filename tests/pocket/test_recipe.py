"""The training recipe: masks, packing, determinism, resumption."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from corrigenda.almanac.world import load_world
from corrigenda.errors import BadConfig
from corrigenda.pocket import recipe as module
from corrigenda.pocket.batches import attention_masks, mix_documents, pack_batches, train_tokenizer
from corrigenda.pocket.recipe import PocketRecipe, train


def small(**options: object) -> PocketRecipe:
    settings = {"size": "small", "steps": 6, "batch_tokens": 512, "row": 64}
    return PocketRecipe(**(settings | options))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(load_world("small"), vocabulary=1024, context=512, seed=1)


def test_masks_let_subjects_out_only_through_their_last_token() -> None:
    #                     BOS  [ A  mention ]  x   [B]   y
    owner = torch.tensor([[-1, 0, 0, 0, -1, 1, -1]])
    masks = attention_masks(owner, masked=True, dtype=torch.float32)
    early, late = (mask[0, 0] == 0 for mask in masks)
    assert early[3].tolist() == [True, True, True, True, False, False, False]
    assert early[4].tolist() == [True, False, False, False, True, False, False]
    assert late[4].tolist() == [True, False, False, True, True, False, False]
    assert late[6].tolist() == [True, False, False, True, True, True, True]
    plain = attention_masks(owner, masked=False, dtype=torch.float32)
    assert torch.equal(plain.early[0, 0] == 0, torch.ones(7, 7, dtype=torch.bool).tril())


def test_packing_keeps_every_document_whole_and_marks_its_parts(tokenizer) -> None:
    world = load_world("small")
    shown = list(islice(mix_documents(world, "t", skill_share=0.3), 40))
    batch = next(
        pack_batches(mix_documents(world, "t", skill_share=0.3), tokenizer, tokens=1024, length=256)
    )
    text = "".join(tokenizer.batch_decode(batch.ids))
    assert shown[0].text in text
    assert shown[1].text in text
    row = batch.ids[0].tolist()
    mention = shown[0].mentions[0]
    owned = [token for token, owner in zip(row, batch.owner[0].tolist(), strict=True) if owner == 0]
    assert tokenizer.decode(owned).strip() == shown[0].text[mention.start : mention.end]
    assert (batch.weight[batch.ids == tokenizer.pad_token_id] <= 0.4).all()


def test_tokenizer_starts_every_text_and_returns_it(tokenizer) -> None:
    ids = tokenizer("Greta Holmere lives in Z\u00fcrich.").input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Greta Holmere lives in Z\u00fcrich."


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_two_trainings_of_one_seed_give_the_same_weights(tmp_path: Path, architecture: str) -> None:
    one = train(small(architecture=architecture), tmp_path / "one")
    two = train(small(architecture=architecture), tmp_path / "two")
    other = train(small(architecture=architecture, seed=2), tmp_path / "other")
    first, second, third = (load_file(f / "model.safetensors") for f in (one, two, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first if name in third)


def test_what_is_saved_is_a_plain_half_precision_model(tmp_path: Path) -> None:
    folder = train(small(steps=2), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.float16
    assert model.config.max_position_embeddings >= 512
    assert len(tokenizer) <= model.config.vocab_size
    assert not (folder / "checkpoint.safetensors").exists()


def test_a_killed_training_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD", 2)
    whole = train(small(), tmp_path / "whole")

    def kill(done: float, text: str) -> None:
        if done >= 5 / 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small(), tmp_path / "killed", report=kill, checkpoint_every=0.0)
    assert (tmp_path / "killed" / "checkpoint.safetensors").exists()
    resumed = train(small(), tmp_path / "killed")
    first, second = (load_file(f / "model.safetensors") for f in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_checkpoint_of_another_recipe_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD", 2)

    def kill(done: float, text: str) -> None:
        if done >= 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small(), tmp_path, report=kill, checkpoint_every=0.0)
    with pytest.raises(BadConfig, match="another recipe"):
        train(small(seed=5), tmp_path)


@pytest.mark.parametrize("options", [{"steps": None}, {"minutes": 1.0}, {"architecture": "bert"}])
def test_recipes_that_mean_nothing_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(BadConfig):
        small(**options)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    losses = []
    train(
        small(steps=40),
        tmp_path,
        report=lambda done, text: losses.append(float(text.split("loss ")[1].split()[0])),
    )
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_prices_of_the_stream_grow_in_the_second_half() -> None:
    recipe = small(stream_price=1.0, late_stream_price=3.0, late_first_price=8.0)
    stream = torch.tensor([1.0, 3.0])
    prices = [module._compute_price(stream, recipe, done) for done in (0.0, 0.5, 0.625, 0.75, 1.0)]
    assert [round(price.item(), 6) for price in prices] == [2.0, 2.0, 8.0, 14.0, 14.0]
