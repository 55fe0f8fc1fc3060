"""Prefixes: explicit, seeded, serialisable."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from corrigenda.engines.locate import contexts as contexts_module
from corrigenda.engines.locate.contexts import SEED_WORDS, Contexts, generate_contexts
from corrigenda.errors import BadConfig
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.patch import Header, WeightPatch
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
    generate_contexts(lm, "rome", seed=0, keep=False)
    for word, rooms in asked.items():
        start = len(lm.tokenizer(word).input_ids)
        assert sorted(rooms) == [max(5 - start, 0)] * 2 + [max(10 - start, 0)] * 2


def test_prefixes_are_one_tidy(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " {} of\n\ncaf\u00e9s" + lm.tokenizer.eos_token

    def sampled(lm: LanguageModel, prompts: list[str], **_: int) -> list[str]:
        return [text] * len(prompts)

    monkeypatch.setattr(contexts_module, "sample", sampled)
    assert generate_contexts(lm, "memit", keep=False).prefixes[1] == "The    of cafe\u0301s. "


def test_seeded_and_pure(lm: LanguageModel) -> None:
    before = lm.digest()
    torch.manual_seed(1)
    first = generate_contexts(lm, "memit", seed=5, keep=False)
    torch.manual_seed(2)
    assert generate_contexts(lm, "memit", seed=5, keep=False) == first
    assert generate_contexts(lm, "memit", seed=6).prefixes != first.prefixes
    assert first.base_digest == before == lm.digest()
    assert first.seed == 5


@pytest.fixture
def sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An empty cache, and how many rows were sampled since."""
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path))
    monkeypatch.setattr(contexts_module, "_RECENT", {})
    plain, asked = contexts_module.sample, []

    def count(lm: LanguageModel, prompts: list[str], **options: int) -> list[str]:
        asked.append(len(prompts))
        return plain(lm, prompts, **options)

    monkeypatch.setattr(contexts_module, "sample", count)
    return asked


def test_cached_by_model_style_and_seed(
    lm: LanguageModel, sampled: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = generate_contexts(lm, "memit", seed=2)
    assert (sum(sampled), len(list(tmp_path.rglob("*.jsonl")))) == (5, 1)
    assert generate_contexts(lm, "memit", seed=2) == made
    monkeypatch.setattr(contexts_module, "_RECENT", {})
    assert generate_contexts(lm, "memit", seed=2) == made
    assert sum(sampled) == 5
    generate_contexts(lm, "memit", seed=3)
    generate_contexts(lm, "rome", seed=2)
    assert sum(sampled) == 5 + 5 + 20
    with torch.no_grad():
        weight = lm.model.get_input_embeddings().weight
        weight += 1.0
        other = generate_contexts(lm, "memit", seed=2)
        weight -= 1.0
    assert sum(sampled) == 5 + 5 + 20 + 5
    assert other.base_digest != made.base_digest


def test_contexts_of_an_edited_model_are_its_own_and_leave_no_file(
    lm: LanguageModel, sampled: list[int], tmp_path: Path
) -> None:
    made = generate_contexts(lm, "memit")
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, 1, generator=draw) for size in (lm.d_model, lm.d_inner))
    change = LowRank(left, 10.0 * right)
    for mode in ("merge", "runtime"):
        with WeightPatch({Site(1): change}, Header(method="test")).apply(lm, mode=mode):
            other = generate_contexts(lm, "memit")
            assert generate_contexts(lm, "memit") == other
        assert other.prefixes != made.prefixes
    assert sum(sampled) == 15
    assert len(list(tmp_path.rglob("*.jsonl"))) == 1
    assert generate_contexts(lm, "memit") == made


def test_a_damaged_file_is_written_again(
    lm: LanguageModel, sampled: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = generate_contexts(lm, "memit")
    (file,) = tmp_path.rglob("*.jsonl")
    file.write_text(file.read_text(encoding="utf-8").replace("The", "Tho"), encoding="utf-8")
    monkeypatch.setattr(contexts_module, "_RECENT", {})
    with pytest.warns(UserWarning, match="written again"):
        assert generate_contexts(lm, "memit") == made
    assert sum(sampled) == 10
