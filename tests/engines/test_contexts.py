"""Prefixes: explicit, seeded, serialisable."""

from __future__ import annotations

import pytest
import torch

from corrigenda.engines.locate import contexts as contexts_module
from corrigenda.engines.locate.contexts import SEED_WORDS, Contexts, generate_contexts
from corrigenda.errors import BadConfig
from corrigenda.lm.model import LanguageModel
from corrigenda.testing.tiny import tiny_model


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny_model(request.param, seed=0)


def test_plain_mean_without_groups() -> None:
    assert Contexts(("", "a. ", "b. ", "c. ")).weights == (0.25,) * 4


def test_two_groups_give_the_bare_prompt_one_half() -> None:
    weights = Contexts(("", *"abcde"), (0, 1, 1, 1, 1, 1)).weights
    assert weights == pytest.approx((0.5, 0.1, 0.1, 0.1, 0.1, 0.1))


def test_text_and_back() -> None:
    contexts = Contexts(("", 'He said: "{}" \U0001f600. '), (0, 1), "digest", 3)
    assert Contexts.from_json(contexts.to_json()) == contexts


@pytest.mark.parametrize(
    ("prefixes", "groups"),
    [((), ()), (("a. ",), ()), (("", "a. "), (0,)), (("", "a. "), (0, 2)), (("", "a"), (1, 1))],
)
def test_impossible_lists_are_refused(prefixes: tuple[str, ...], groups: tuple[int, ...]) -> None:
    with pytest.raises(BadConfig, match="CG502"):
        Contexts(prefixes, groups)


@pytest.mark.parametrize("text", ["[]", "{", '{"prefixes": [""], "colour": 1}'])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(BadConfig, match="no contexts"):
        Contexts.from_json(text)


def test_styles(lm: LanguageModel) -> None:
    memit = generate_contexts(lm, "memit", seed=1)
    rome = generate_contexts(lm, "rome", seed=1)
    assert len(memit) == 6
    assert memit.weights[0] == pytest.approx(0.5)
    assert len(rome) == 21
    assert rome.weights == pytest.approx((1 / 21,) * 21)
    assert len(set(rome.prefixes)) > 15
    for contexts in (memit, rome):
        assert contexts.prefixes[0] == ""
        for prefix in contexts.prefixes[1:]:
            assert prefix.startswith(SEED_WORDS)
            assert prefix.endswith(". ")
            assert not set("{}") & set(prefix)
    with pytest.raises(BadConfig, match="no style"):
        generate_contexts(lm, "other")  # type: ignore[arg-type]  # refused at run time


def test_lengths_count_the_seed_word_and_what_precedes_a_text(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, list[int]] = {word: [] for word in SEED_WORDS}

    def sampled(lm: LanguageModel, prompts: list[str], **options: int) -> list[str]:
        for prompt in prompts:
            asked[prompt].append(options["max_new_tokens"])
        return [" it"] * len(prompts)

    monkeypatch.setattr(contexts_module, "sample", sampled)
    generate_contexts(lm, "rome", seed=0)
    for word, rooms in asked.items():
        start = len(lm.tokenizer(word).input_ids)
        assert sorted(rooms) == [max(5 - start, 0)] * 2 + [max(10 - start, 0)] * 2


def test_prefixes_are_one_tidy(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " {} of\n\ncaf\u00e9s" + lm.tokenizer.eos_token

    def sampled(lm: LanguageModel, prompts: list[str], **_: int) -> list[str]:
        return [text] * len(prompts)

    monkeypatch.setattr(contexts_module, "sample", sampled)
    assert generate_contexts(lm, "memit").prefixes[1] == "The    of cafe\u0301s. "


def test_seeded_and_pure(lm: LanguageModel) -> None:
    before = lm.digest()
    torch.manual_seed(1)
    first = generate_contexts(lm, "memit", seed=5)
    torch.manual_seed(2)
    assert generate_contexts(lm, "memit", seed=5) == first
    assert generate_contexts(lm, "memit", seed=6).prefixes != first.prefixes
    assert first.base_digest == before == lm.digest()
    assert first.seed == 5
