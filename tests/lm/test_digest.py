"""Digests that are remembered: what is hashed again, and what is seen."""

import copy
from dataclasses import replace

import pytest
import torch

import corrigenda as cg
from corrigenda.lm import digest
from corrigenda.testing.tiny import tiny_model

FACT = cg.Fact(
    prompt="The capital of France is",
    target="Rome",
    subject="France",
    paraphrases=("France has the capital",),
    neighbours=("The capital of Spain is",),
)


@pytest.fixture
def hashed(monkeypatch):
    """Count the bytes that are hashed; the hash is as it was."""
    sizes = []
    plain = digest.hash_tensor

    def count(tensor):
        sizes.append(tensor.nbytes)
        return plain(tensor)

    monkeypatch.setattr(digest, "hash_tensor", count)
    return sizes


def whole(lm):
    """Bytes of the model, shared memory counted once."""
    return sum({one.data_ptr(): one.nbytes for one in lm.model.state_dict().values()}.values())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_remembered_digest_is_that_of_a_fresh_hash(family, hashed):
    lm = tiny_model(family)
    assert lm.recall_digest() == digest.digest(lm.model)
    hashed.clear()
    assert lm.recall_digest() == lm.recall_digest()
    assert hashed == []
    assert lm.digest() == lm.recall_digest()
    assert sum(hashed) == whole(lm)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_one_bit_written_past_the_version_counter_is_seen(family):
    lm = tiny_model(family, layers=1)
    before = lm.recall_digest()
    for name, parameter in lm.model.named_parameters():
        bits = parameter.data.view(torch.int32).view(-1)
        bits[-1] ^= 1
        assert lm.recall_digest() == digest.digest(lm.model) != before, name
        bits[-1] ^= 1
    assert lm.recall_digest() == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_or_columns_exchanged_past_the_version_counter_are_seen(dtype):
    lm = tiny_model("llama", layers=1)
    lm.model.to(dtype)
    weight = lm.model.get_input_embeddings().weight
    before = lm.recall_digest()
    for order in (torch.arange(len(weight)).flip(0), torch.arange(len(weight)).roll(1)):
        weight.data.view(-1).copy_(weight.data[order].reshape(-1))
        assert lm.recall_digest() == digest.digest(lm.model) != before
        before = lm.recall_digest()


def test_numpy_and_replaced_memory_are_seen():
    lm = tiny_model("llama", layers=1)
    weight = lm.model.get_input_embeddings().weight
    before = lm.recall_digest()
    weight.detach().numpy()[3, 2] += 1.0
    seen = lm.recall_digest()
    assert seen == digest.digest(lm.model) != before
    weight.data = weight.data.clone()
    weight.data[0] = 0.0
    assert lm.recall_digest() == digest.digest(lm.model) != seen
    lm.model.config.rms_norm_eps *= 2
    assert lm.recall_digest() == digest.digest(lm.model)


def test_a_copy_remembers_for_itself():
    lm = tiny_model("llama", layers=1)
    before = lm.recall_digest()
    other = copy.deepcopy(lm)
    with torch.no_grad():
        other.model.get_input_embeddings().weight += 1.0
    assert other.recall_digest() == digest.digest(other.model) != before
    assert lm.recall_digest() == before


@pytest.mark.parametrize("method", ["rome", "grace"])
def test_edits_hash_the_model_at_most_once_in_a_process(method, hashed):
    lm = cg.load("pocket")
    changed = 0
    for target in ("Rome", "Madrid"):
        made = cg.correct(lm, replace(FACT, target=target), method)
        assert made.succeeded
        changed += sum(4 * change.parameters for change in made.changes)
    # A weight is hashed again after the patch was put on, and after it was taken off.
    assert whole(lm) <= sum(hashed) <= whole(lm) + 2 * changed
    assert made.patch.header.base_digest == digest.digest(lm.model)


def test_applying_hashes_no_more_than_it_wrote(hashed):
    lm = cg.load("pocket")
    patch = cg.edit(lm, FACT, "rome")
    hashed.clear()
    with patch.apply(lm):
        assert hashed == []
        inside = lm.recall_digest()
        assert len(hashed) == 1
        assert inside != patch.header.base_digest
    hashed.clear()
    assert lm.recall_digest() == patch.header.base_digest
    assert len(hashed) == 1
    patch.apply(lm).revert()
    assert len(hashed) == 1


def test_a_patch_of_other_weights_is_refused_after_a_write_past_the_counter():
    lm = cg.load("pocket")
    patch = cg.edit(lm, FACT, "rome")
    bits = lm.model.get_input_embeddings().weight.data.view(torch.int32).view(-1)
    bits[-1] ^= 1
    with pytest.raises(cg.errors.WrongBase):
        patch.apply(lm)
    bits[-1] ^= 1
    patch.apply(lm).revert()
