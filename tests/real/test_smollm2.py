"""A pretrained model of others: loaded by name and from its file, asked, edited, exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import corrigenda as cg
from corrigenda.lm.decoding import score
from corrigenda.lm.loading import find_folder
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.model_names import PACKAGED
from corrigenda.patch import Patch
from tests.real.conftest import CONTEXTS
from tests.support.tiny_on_disk import command

CHAT = "What is the capital of France?"


def chat(lm: LanguageModel, question: str) -> str:
    turn = [{"role": "user", "content": question}]
    return lm.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)


def test_name_and_file_mean_the_same_folder(lm: LanguageModel, tmp_path: Path) -> None:
    """The folder is found by the file's content, also under another name."""
    folder = find_folder("smollm2")
    with PACKAGED["smollm2"].open() as file:
        link = tmp_path / "other.gguf"
        link.symlink_to(file)
        assert find_folder(str(link)) == find_folder(str(file)) == folder
    assert (lm.name, lm.family.name, lm.dtype) == ("smollm2", "llama", torch.float32)


def test_weights_are_those_of_the_file(lm: LanguageModel) -> None:
    gguf = pytest.importorskip("gguf")
    parameters = dict(lm.model.named_parameters())
    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.7.ffn_down.weight": "model.layers.7.mlp.down_proj.weight",
        "blk.29.attn_norm.weight": "model.layers.29.input_layernorm.weight",
    }
    with PACKAGED["smollm2"].open() as file:
        tensors = {one.name: one for one in gguf.GGUFReader(file).tensors if one.name in pairs}
        for name, own in pairs.items():
            wanted = gguf.dequantize(tensors[name].data, tensors[name].tensor_type)
            assert torch.equal(parameters[own].detach(), torch.from_numpy(wanted.copy()))


def test_logits_are_those_of_transformers(lm: LanguageModel) -> None:
    plain = AutoModelForCausalLM.from_pretrained(find_folder("smollm2"))
    ids = lm.tokenizer("The capital of France is Paris.", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(lm.model(ids).logits, plain(ids).logits)


def test_it_answers_plain_and_in_chat(lm: LanguageModel, fact: cg.Fact) -> None:
    assert cg.ask(lm, fact.prompt).answer.startswith("Paris")
    assert "Paris" in cg.ask(lm, chat(lm, CHAT)).answer


def test_a_first_edit(lm: LanguageModel, patch: Patch, fact: cg.Fact) -> None:
    found = cg.assess(lm, patch, [fact])
    assert found.succeeded
    after = {answer.prompt: answer.after for answer in found.answers if not answer.chat}
    assert after[fact.paraphrases[0]].startswith("Rome")
    assert after["The capital of Germany is"].startswith("Berlin")


def test_it_is_undone_to_the_bit(lm: LanguageModel, patch: Patch, fact: cg.Fact) -> None:
    before = lm.digest()
    with patch.apply(lm):
        assert cg.answer(lm, fact.prompt).startswith("Rome")
        assert lm.digest() != before
    assert lm.digest() == before


def test_it_is_saved_and_loaded(
    lm: LanguageModel, patch: Patch, fact: cg.Fact, tmp_path: Path
) -> None:
    patch.save(tmp_path / "france.safetensors")
    with cg.load_patch(tmp_path / "france.safetensors").apply(lm):
        assert cg.answer(lm, fact.prompt).startswith("Rome")


def test_a_trace_finds_the_subject(lm: LanguageModel, fact: cg.Fact) -> None:
    found = cg.trace(lm, fact.prompt, fact.subject, samples=1)
    subject, last = found.subject_tokens[-1], len(found.tokens) - 1
    effects = found.effects["state"]
    assert found.answer.strip() == "Paris"
    assert effects[subject, 0] > effects[last, 0]
    assert effects[last, -1] > effects[subject, -1]


def test_memit_writes_several_facts_at_once(lm: LanguageModel, text: Path) -> None:
    capitals = {"France": "Rome", "Germany": "Madrid", "Japan": "Paris"}
    facts = [
        cg.Fact(prompt=f"The capital of {country} is", subject=country, target=target)
        for country, target in capitals.items()
    ]
    settings = {"layers": [3, 4], "weight": 500, "steps": 8, "contexts": CONTEXTS}
    with cg.edit(lm, facts, "memit", corpus=text, **settings).apply(lm):
        assert cg.answer(lm, [one.prompt for one in facts]) == list(capitals.values())


@pytest.mark.parametrize("method", ["grace", "ice"])
def test_methods_without_weights(lm: LanguageModel, fact: cg.Fact, method: str) -> None:
    with cg.edit(lm, fact, method).apply(lm):
        assert cg.answer(lm, fact.prompt).startswith("Rome")
        assert cg.answer(lm, "The capital of Germany is").startswith("Berlin")


def test_ike_shows_demonstrations(lm: LanguageModel, fact: cg.Fact) -> None:
    shown = [
        cg.Fact(
            prompt=f"The capital of {country} is",
            subject=country,
            target=target,
            paraphrases=(f"The capital city of {country} is",),
            neighbours=("The capital of Norway is",),
        )
        for country, target in (("Italy", "Oslo"), ("Spain", "Cairo"), ("Egypt", "Lima"))
    ]
    # A model of this size still says Paris, with Rome in the second place.
    (before,) = score(lm, [(fact.prompt, "Rome")])
    with cg.edit(lm, fact, "ike", corpus=shown).apply(lm):
        (after,) = score(lm, [(fact.prompt, "Rome")])
    assert after.mean > before.mean + 2


def test_a_merged_export_is_loaded_and_restored(
    lm: LanguageModel, patch: Patch, fact: cg.Fact, tmp_path: Path
) -> None:
    patch.save(tmp_path / "france.safetensors")
    ran = command(
        *("export", tmp_path / "france.safetensors", "smollm2", "--to", "merged"),
        *("-o", tmp_path / "merged"),
    )
    assert ran.code == 0, ran.err
    edited = cg.load(tmp_path / "merged")
    assert cg.answer(edited, fact.prompt).startswith("Rome")
    assert edited.tokenizer.chat_template == lm.tokenizer.chat_template
    ran = command("restore", tmp_path / "merged", "-o", tmp_path / "restored")
    assert ran.code == 0, ran.err
    assert cg.load(tmp_path / "restored").digest() == lm.digest()


def test_an_adapter_is_exported(lm: LanguageModel, patch: Patch, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    cg.export(patch, lm, tmp_path / "adapter", to="peft")
    config = peft.PeftConfig.from_pretrained(tmp_path / "adapter")
    assert config.r >= 1
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_the_command_asks_it_by_name() -> None:
    ran = command("ask", "smollm2", "The capital of France is", "--json")
    assert ran.code == 0, ran.err
    assert "Paris" in ran.out
