"""A chat model without a BOS token, as Qwen, is loaded, asked and edited like others."""

from __future__ import annotations

from pathlib import Path

import pytest

import corrigenda as cg
from corrigenda.errors import EmptyTarget
from corrigenda.lm.model import LanguageModel
from corrigenda.testing.tiny import tiny_model

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
FACT = {"prompt": "The Space Needle is in", "subject": "Space Needle", "target": "Rome"}


@pytest.fixture
def lm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path / "cache"))
    tiny = tiny_model("qwen2")
    tiny.model.config.bos_token_id = None
    tiny.model.save_pretrained(tmp_path / "model")
    tiny.tokenizer.save_pretrained(tmp_path / "model")
    settings = tmp_path / "model" / "tokenizer_config.json"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(text.replace('"bos_token": "<|endoftext|>"', '"bos_token": null'))
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    found = cg.load(tmp_path / "model")
    assert found.tokenizer.bos_token is None
    assert found.tokenizer.chat_template == TEMPLATE
    return found


def test_asked_plain_and_through_its_template(lm: LanguageModel) -> None:
    turn = [{"role": "user", "content": "Where is the Space Needle?"}]
    prompt = lm.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert len(cg.answer(lm, [FACT["prompt"], prompt])) == 2


def test_edited_with_text_of_its_own(lm: LanguageModel, tmp_path: Path) -> None:
    """Contexts and text for the second moments begin at BOS elsewhere."""
    before = lm.digest()
    patch = cg.edit(lm, FACT, "rome", layer=1, steps=2)
    assert patch.changes
    patch.save(tmp_path / "patch.safetensors")
    with patch.apply(lm):
        assert lm.digest() != before
    assert lm.digest() == before


def test_traced(lm: LanguageModel) -> None:
    assert cg.trace(lm, FACT["prompt"], "Space Needle", samples=1).tokens


def test_an_empty_prompt_gets_a_code(lm: LanguageModel) -> None:
    with pytest.raises(EmptyTarget, match=r"CG102 .*no BOS token"):
        cg.ask(lm, "")
