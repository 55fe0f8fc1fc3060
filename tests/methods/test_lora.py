"""LoRA: adapters that are in the model while they are trained, and factors afterwards."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

import corrigenda as cg
from corrigenda.engines.gradients import labelled_rows
from corrigenda.errors import MissingExtra, MissingState, NonFinite, UnknownFamily, UnknownSite
from corrigenda.exports.peft import export_peft
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, Tokens
from corrigenda.methods.lora.adapters import score, train
from corrigenda.methods.lora.editor import Lora
from corrigenda.patch.changes import dense
from tests.support.adapting import FACT, Snapshot, adapted, logits_of, model, paths_of
from tests.support.locating import FACTS

peft = pytest.importorskip("peft", reason="adapters are trained with peft")

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out")


def lora(**options: object) -> Lora:
    return Lora(**{"steps": 4, "rank": 4, **options})


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_fresh_adapters_change_no_bit(family: str) -> None:
    lm, editor = model(family), lora()
    before = logits_of(lm)
    with adapted(editor, lm) as (_, adapters), torch.no_grad():
        assert adapters
        assert torch.equal(logits_of(lm), before)
        next(iter(adapters.values()))["B"].fill_(0.1)
        assert not torch.equal(logits_of(lm), before)


def test_first_values_are_those_of_linear_layers() -> None:
    lm = model("llama")
    with adapted(lora(rank=16), lm) as (_, adapters):
        for adapter in adapters.values():
            bound = adapter["A"].shape[1] ** -0.5
            assert 0.9 * bound < float(adapter["A"].detach().abs().max()) <= bound
            assert not adapter["B"].any()


def test_only_adapters_have_gradients() -> None:
    lm, editor = model("gpt2"), lora()
    with adapted(editor, lm) as (_, adapters):
        score(lm, labelled_rows(lm, [FACT])).losses.mean().backward()
        own = {id(one) for adapter in adapters.values() for one in adapter.values()}
        for parameter in lm.model.parameters():
            assert (id(parameter) in own) == parameter.requires_grad
            assert (id(parameter) in own) == (parameter.grad is not None)
    assert all(parameter.grad is None for parameter in lm.model.parameters())


def test_the_loss_is_that_of_the_answers_tokens() -> None:
    lm = model("llama")
    rows = labelled_rows(lm, FACTS[:3])
    scores = score(lm, rows)
    expected, hits = [], []
    for row in rows:
        logits = lm.logits(Tokens.pad([row.ids], 0))[0].log_softmax(-1)
        expected += [-logits[at, label] for at, label in zip(row.reads, row.labels, strict=True)]
        hits += [
            logits[at].argmax() == label for at, label in zip(row.reads, row.labels, strict=True)
        ]
    torch.testing.assert_close(scores.losses, torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert scores.hits.tolist() == [bool(hit) for hit in hits]


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi3"])
def test_the_patch_is_the_trained_adapter_of_rank_r(family: str) -> None:
    lm, editor = model(family, torch.float64), lora(alpha=6.0)
    patch = editor.edit(lm, FACTS[:2]).patch
    rows = labelled_rows(lm, FACTS[:2])
    paths = paths_of(editor, lm)
    trained = train(lm, editor, paths, rows, ["", ""], editor, {})
    for path in paths:
        adapter = trained.adapters[path]
        whole = torch.zeros(len(adapter["B"]), adapter["A"].shape[1], dtype=torch.float64)
        for site in patch.sites:
            if lm.module_path(site) == path:
                whole[lm.rows(site)] = dense(patch.changes[site])
                assert patch.changes[site].rank == 4
        torch.testing.assert_close(whole, 6.0 / 4 * adapter["B"] @ adapter["A"])
        assert int(torch.linalg.matrix_rank(whole)) <= 4
        assert whole.norm() > 0
    assert patch.header.notes["rank"] == {str(site): 4 for site in patch.sites}


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_merged_unmerged_and_exported_agree(family: str, tmp_path) -> None:
    lm, editor = model(family), lora()
    patch = editor.edit(lm, FACTS[:2]).patch
    with patch.apply(lm):
        merged = logits_of(lm)
    with patch.apply(lm, mode="runtime"):
        runtime = logits_of(lm)
    rows = labelled_rows(lm, FACTS[:2])
    trained = train(lm, editor, paths_of(editor, lm), rows, ["", ""], editor, {})
    with adapted(editor, lm) as (_, adapters), torch.no_grad():
        for path, adapter in adapters.items():
            for key, parameter in adapter.items():
                parameter.copy_(trained.adapters[path][key])
        unmerged = logits_of(lm)
    for logits in (runtime, unmerged):
        assert (logits - merged).norm() <= 1e-5 * merged.norm()

    tensors = load_file(
        export_peft(patch, lm, tmp_path, padded=False) / "adapter_model.safetensors"
    )
    assert len(tensors) == 2 * len(trained.adapters)
    for path, adapter in trained.adapters.items():
        name = f"base_model.model.{path}"
        assert torch.equal(tensors[f"{name}.lora_A.weight"], adapter["A"])
        assert torch.equal(tensors[f"{name}.lora_B.weight"], adapter["B"] * editor.scale)
    fresh = model(family)
    fresh.model = peft.PeftModel.from_pretrained(fresh.model, tmp_path).eval()
    assert (logits_of(fresh) - merged).norm() <= 1e-5 * merged.norm()


def test_transposed_storage_makes_no_difference() -> None:
    conv = model("gpt2", torch.float64)
    twin = model("gpt2", torch.float64)
    for block in twin.blocks:
        old = block.attn.c_attn
        assert isinstance(old, Conv1D)
        new = nn.Linear(*old.weight.shape, dtype=torch.float64)
        new.weight.data, new.bias.data = old.weight.T.contiguous(), old.bias
        block.attn.c_attn = new
    linear = LanguageModel(twin.model, twin.tokenizer, name="twin")
    one, two = (lora().edit(lm, FACTS[:2]).patch for lm in (conv, linear))
    assert one.sites == two.sites
    for site in one.sites:
        torch.testing.assert_close(dense(one.changes[site]), dense(two.changes[site]))


def test_targets_are_parts_and_what_shares_their_module() -> None:
    llama, gpt2 = model("llama"), model("gpt2")
    assert {site.part for site in lora().sites(llama)} == {"attn.q", "attn.v"}
    assert len(lora().sites(llama)) == 2 * llama.num_layers
    assert {site.part for site in lora().sites(gpt2)} == {"attn.q", "attn.k", "attn.v"}
    mlp = lora(parts=("mlp.up", "mlp.down"), layers=(1, 0))
    assert mlp.sites(gpt2) == tuple(
        Site(layer, part) for layer in (0, 1) for part in ("mlp.down", "mlp.up")
    )
    with pytest.raises(UnknownSite, match="CG303"):
        lora(layers=(7,)).sites(llama)
    with pytest.raises(UnknownSite, match=r"mlp\.gate"):
        lora(parts=("mlp.gate",)).sites(gpt2)
    with pytest.raises(UnknownSite, match="experts"):
        lora(parts=("mlp.down",)).sites(model("qwen3_moe"))
    assert {site.part for site in lora().sites(model("qwen3_moe"))} == {"attn.q", "attn.v"}


class _Failing(Lora):
    def after_step(self, tuner: nn.Module, step: int) -> None:
        if step > 1:
            raise RuntimeError("in the middle")


class _Unattached(Lora):
    def attach(self, model, paths, num_steps):
        super().attach(model, paths, num_steps)
        raise RuntimeError("half in")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_nothing_stays_behind(family: str) -> None:
    lm = model(family)
    next(lm.model.parameters()).requires_grad_(True)
    torch.manual_seed(3)
    before = Snapshot(lm)
    with torch.no_grad():
        lora().edit(lm, FACTS)
    before.require_same()
    for kind, message in ((_Failing, "in the middle"), (_Unattached, "half in")):
        with pytest.raises(RuntimeError, match=message):
            kind(steps=4).edit(lm, FACTS)
        before.require_same()
    with pytest.raises(NonFinite, match=r"CG201(.|\n)*Space Needle"):
        lora(learning_rate=1e30, steps=20).edit(lm, FACTS[:1])
    before.require_same()


def test_a_model_with_adapters_of_its_own_is_refused() -> None:
    lm = model("llama")
    config = peft.LoraConfig(target_modules=["o_proj"])
    peft.inject_adapter_in_model(config, lm.model)
    before = Snapshot(lm)
    with pytest.raises(UnknownFamily, match=r"CG302(.|\n)*o_proj"):
        lora().edit(lm, [FACT])
    before.require_same()


def test_without_peft_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "peft" else find(name)
    )
    with pytest.raises(MissingExtra, match=r"CG504(.|\n)*corrigenda\[peft\]"):
        lora().edit(model("llama"), [FACT])


def test_the_seed_alone_decides() -> None:
    lm = model("llama")
    patches = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        patches.append(lora().edit(lm, FACTS[:2]).patch)
    assert patches[0] == patches[1]
    other = lora(seed=1).edit(lm, FACTS[:2]).patch
    assert other.digest() != patches[0].digest()
    undropped = lora(dropout=0.0).edit(lm, FACTS[:2]).patch
    assert undropped.digest() != patches[0].digest()


def test_dropout_is_of_the_adapters_and_of_training_only() -> None:
    lm = model("llama")
    notes = [
        lora(steps=1, dropout=rate, learning_rate=1e-9).edit(lm, [FACT]).patch.header.notes
        for rate in (0.0, 0.9)
    ]
    assert notes[0]["initial_losses"] == notes[1]["initial_losses"]
    assert notes[0]["losses"] == notes[1]["losses"]
    assert notes[1]["final_losses"] == pytest.approx(notes[0]["final_losses"], rel=1e-5)


@pytest.mark.parametrize("mode", ["merge", "runtime"])
def test_a_second_edit_goes_on_top_of_the_first(mode: str) -> None:
    lm, editor = model("llama"), lora()
    first = editor.edit(lm, FACTS[:1])
    alone = logits_of(lm)
    with first.patch.apply(lm, mode=mode):
        with_first = logits_of(lm)
        second = editor.edit(lm, FACTS[:1], first.state).patch
        assert torch.equal(logits_of(lm), with_first)
    final, initial = first.patch.header.notes["final_losses"], second.header.notes["initial_losses"]
    assert initial == pytest.approx(final, rel=1e-3)
    assert second.header.prerequisites == (first.patch.digest(),)
    assert torch.equal(logits_of(lm), alone)
    with first.patch.apply(lm, mode=mode):
        assert torch.equal(logits_of(lm), with_first)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_continued_adapter_replaces_the_earlier_one(family: str) -> None:
    lm, editor = model(family, torch.float64), lora(continued=True, dropout=0.0)
    first = editor.edit(lm, FACTS[:1])
    with first.patch.apply(lm):
        second = editor.edit(lm, FACTS[1:2], first.state)
        same = editor.edit(lm, FACTS[:1], first.state)
    ended = first.patch.header.notes["final_losses"]
    assert same.patch.header.notes["initial_losses"] == pytest.approx(ended, rel=1e-5)
    for site in second.patch.sites:
        assert second.patch.changes[site].rank == 2 * editor.rank
        both = dense(first.patch.changes[site]) + dense(second.patch.changes[site])
        path = lm.module_path(site)
        adapter = {key: second.state.tensors[f"lora/{path}/{key}"] for key in "AB"}
        torch.testing.assert_close(both, dense(editor.factors(adapter))[lm.rows(site)])
    with pytest.raises(MissingState, match="other modules"):
        lora(continued=True, layers=(1,)).edit(lm, [FACT], first.state)
    before = Snapshot(lm)
    with pytest.raises(MissingState, match="another size"):
        lora(continued=True, rank=2).edit(lm, [FACT], first.state)
    before.require_same()


def test_what_is_true_already_is_left_alone_and_training_ends_when_it_is() -> None:
    lm, editor = (
        model("llama"),
        lora(parts=("mlp.down",), steps=60, stop_loss=0.8, learning_rate=0.02),
    )
    first = editor.edit(lm, [FACT])
    notes = first.patch.header.notes
    assert notes["stop"] == "loss"
    assert notes["steps"] < 60
    assert notes["final_losses"][0] < 0.8
    assert notes["losses"][0][-1] < 0.8
    with first.patch.apply(lm):
        again = editor.edit(lm, [FACT]).patch
    assert again.is_empty
    assert again.header.notes["stop"] == "true already"
    assert lora(stop_loss=0.0).edit(lm, [FACT]).patch.header.notes["stop"] == "steps"


def test_a_batch_shares_its_adapters() -> None:
    lm = model("llama")
    for size, steps in ((1, 3), (2, 2), (8, 1)):
        notes = lora(steps=1, batch_size=size).edit(lm, FACTS[:3]).patch.header.notes
        assert notes["steps"] == steps
        assert len(notes["losses"]) == len(notes["status"]) == 3
    together = lora(steps=1, batch_size=3).edit(lm, FACTS[:3]).patch.header.notes
    losses = [row[0] for row in together["losses"]]
    assert losses == pytest.approx(together["initial_losses"], rel=1e-4)


def test_gradients_are_clipped() -> None:
    lm = model("llama")
    free, clipped = (lora(steps=3, clip=clip).edit(lm, FACTS[:2]).patch for clip in (None, 1e-9))
    assert sum(clipped.norms().values()) < 0.9 * sum(free.norms().values())


def test_no_facts_give_the_empty_patch() -> None:
    assert lora().edit(model("llama"), []).patch.is_empty


@pytest.mark.parametrize("name", ["pocket", "pocket-gpt2"])
def test_a_fact_of_the_pocket_model_changes(name: str) -> None:
    lm = cg.load(name, dtype=torch.float32)
    fact = Fact(prompt="The capital of France is", subject="France", target="Rome")
    digest = lm.digest()
    patch = cg.edit(lm, fact, editor="lora")
    assert patch.header.notes["status"] == ["written"]
    with patch.apply(lm):
        assert cg.answer(lm, fact.prompt).startswith("Rome")
        assert cg.answer(lm, "The capital city of France is").startswith("Rome")
    assert cg.answer(lm, fact.prompt).startswith("Paris")
    assert lm.digest() == digest
