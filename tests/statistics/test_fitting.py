"""Second moments of keys: right, independent of how they are gathered, and safe on disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from corrigenda.errors import (
    BadConfig,
    EmptyCorpus,
)
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, Tokens, key, value
from corrigenda.state import State
from corrigenda.statistics import Corpus, cache, cache_folder, fit_moments, fitting
from corrigenda.statistics.corpus import write_own_text
from corrigenda.statistics.token_rows import tokenise
from corrigenda.testing.tiny import tiny_model

SITES = (Site(0), Site(2))
TEXTS = [
    f"{place} is a town of {number} people, and its {thing} is known for {quality}."
    for number, place in enumerate(("Arles", "Bergen", "Cork", "Delft"), start=7)
    for thing in ("bridge", "market")
    for quality in ("its age", "the river below it", "songs")
]

pytestmark = pytest.mark.filterwarnings("ignore:Few keys")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for every test."""
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_model("gpt2", seed=0)


@pytest.fixture(scope="module")
def exact() -> LanguageModel:
    return tiny_model("llama", seed=0, dtype=torch.float64)


def at_once(lm: LanguageModel, texts: list[str], site: Site, *, skip: int = 0) -> Tensor:
    """X^T X / N, row after row, without padding or batches."""
    keys = []
    for text in texts:
        ids = lm.tokenizer(text).input_ids
        keys.append(lm.tap(Tokens.pad([ids], 0), [key(site)])[key(site)][0, skip:])
    stacked = torch.cat(keys).double()
    return stacked.T @ stacked / len(stacked)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def test_streaming_equals_all_keys_at_once(exact: LanguageModel) -> None:
    state = fit_moments(exact, SITES, Corpus(TEXTS, pack=False))
    for site in SITES:
        moment = state.moment(site)
        ours = moment.covariance()
        assert relative(ours, at_once(exact, TEXTS, site)) < 1e-12
        assert torch.equal(ours, ours.T)
        assert float(torch.linalg.eigvalsh(ours)[0]) >= -1e-10 * float(ours.diagonal().mean())
        centred = ours - torch.outer(moment.mean, moment.mean)
        assert float(torch.linalg.eigvalsh(centred)[0]) >= -1e-10 * float(ours.diagonal().mean())
        assert moment.count == sum(len(exact.tokenizer(text).input_ids) for text in TEXTS)


def test_batches_order_and_padding_change_nothing(
    exact: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit_moments(exact, SITES, Corpus(TEXTS, pack=False), keep=False)
    turned = fit_moments(exact, SITES, Corpus(TEXTS[::-1], pack=False), keep=False)
    monkeypatch.setattr(fitting, "BATCH_TOKENS", 70)
    small = fit_moments(exact, SITES, Corpus(TEXTS, pack=False), keep=False)
    for site in SITES:
        theirs = whole.moment(site).covariance()
        assert relative(turned.moment(site).covariance(), theirs) < 1e-12
        assert relative(small.moment(site).covariance(), theirs) < 1e-12


def test_one_pass_equals_layer_by_layer(lm: LanguageModel) -> None:
    together = fit_moments(lm, SITES, TEXTS, keep=False)
    for site in SITES:
        alone = fit_moments(lm, [site], TEXTS, keep=False)
        assert torch.equal(alone.moment(site).covariance(), together.moment(site).covariance())


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "gemma2"])
def test_keys_are_the_inputs_of_the_weight(family: str) -> None:
    lm = tiny_model(family, seed=0)
    tokens = Tokens.pad([lm.tokenizer(TEXTS[0]).input_ids], 0)
    tapped = lm.tap(tokens, [key(SITES[1]), value(SITES[1])])
    bias = lm.bias(SITES[1])
    ours = tapped[key(SITES[1])] @ lm.weight(SITES[1]).T + (0 if bias is None else bias)
    assert torch.allclose(ours, tapped[value(SITES[1])], atol=1e-5)
    moment = fit_moments(lm, SITES, Corpus(TEXTS, pack=False)).moment(SITES[1])
    assert relative(moment.covariance(), at_once(lm, TEXTS, SITES[1])) < 1e-5


def test_experts_see_only_the_tokens_routed_to_them() -> None:
    lm = tiny_model("qwen3_moe", seed=0)
    experts = [Site(1, expert=number) for number in range(lm.model.config.num_experts)]
    state = fit_moments(lm, experts, TEXTS)
    counts = [state.moment(site).count for site in experts]
    routed = state.meta["corpus"]["num_tokens"] * lm.model.config.num_experts_per_tok
    assert sum(counts) == routed
    assert max(counts) < state.meta["corpus"]["num_tokens"]
    for site in experts:
        moment = state.moment(site)
        if moment.count:
            assert float(moment.covariance().diagonal().sum()) > 0


def test_first_token_can_be_left_out_and_its_share_is_told(exact: LanguageModel) -> None:
    kept = fit_moments(exact, SITES, Corpus(TEXTS, pack=False))
    left = fit_moments(exact, SITES, Corpus(TEXTS, pack=False, include_first_token=False))
    for site in SITES:
        ours = left.moment(site)
        assert relative(ours.covariance(), at_once(exact, TEXTS, site, skip=1)) < 1e-12
        assert kept.moment(site).count - ours.count == len(TEXTS)
        trace = float(kept.moment(site).covariance().diagonal().sum()) * kept.moment(site).count
        rest = float(ours.covariance().diagonal().sum()) * ours.count
        for state in (kept, left):
            share = state.meta["moments"][str(site)]["first_token_share"]
            assert share == pytest.approx(1 - rest / trace, rel=1e-9)


def test_rows_cut_pack_and_stop(lm: LanguageModel, exact: LanguageModel) -> None:
    whole = [lm.tokenizer(text).input_ids for text in TEXTS]
    single = tokenise(lm.tokenizer, TEXTS, length=10, pack=False, num_tokens=10**6)
    assert [single[i] for i in range(len(single))] == [ids[:10] for ids in whole]
    packed = tokenise(lm.tokenizer, TEXTS, length=10, pack=True, num_tokens=10**6)
    end = lm.tokenizer.eos_token_id
    joined = [token for ids in whole for token in [*ids, end]]
    assert [token for i in range(len(packed)) for token in packed[i]] == joined
    assert set(packed.lengths[:-1]) == {10}
    bos = exact.tokenizer.bos_token_id
    behind = tokenise(exact.tokenizer, TEXTS, length=10, pack=True, num_tokens=10**6)
    assert all(behind[i][0] == bos and bos not in behind[i][1:] for i in range(len(behind)))
    short = tokenise(lm.tokenizer, TEXTS, length=10, pack=True, num_tokens=37)
    assert (short.num_tokens, list(short.lengths)) == (37, [10, 10, 10, 7])
    assert short.digest != packed.digest


@pytest.mark.parametrize("texts", [[], ["", " \n"]])
def test_no_text_is_refused(lm: LanguageModel, texts: list[str]) -> None:
    with pytest.raises(EmptyCorpus, match="CG602"):
        fit_moments(lm, SITES, texts)


def test_bad_settings_are_refused(lm: LanguageModel) -> None:
    for options in ({"num_tokens": 0}, {"length": -1}):
        with pytest.raises(BadConfig, match="at least 1"):
            Corpus(TEXTS, **options)
    with pytest.raises(BadConfig, match="no site"):
        fit_moments(lm, [], TEXTS)


def test_without_text_the_model_writes_its_own(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = fit_moments(lm, SITES, Corpus(num_tokens=100, seed=4))
    assert state.meta["corpus"]["written_by_model"]
    assert state.moment(SITES[0]).count == 100
    monkeypatch.setattr("corrigenda.statistics.corpus.sample", None)
    assert fit_moments(lm, SITES, Corpus(num_tokens=100, seed=4)) == state
    (kept,) = (cache_folder() / "texts").iterdir()
    kept.write_text(kept.read_text(encoding="utf-8") + '\n"more"', encoding="utf-8")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(TypeError):
        fit_moments(lm, SITES, Corpus(num_tokens=100, seed=4))


def test_own_text_is_ten_tokens_a_dimension_and_depends_on_the_seed(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_own_text(lm, 50, seed=0, progress=None, keep=False)
    assert first == write_own_text(lm, 50, seed=0, progress=None, keep=False)
    assert first != write_own_text(lm, 50, seed=1, progress=None, keep=False)
    asked = []

    def write(lm: LanguageModel, num_tokens: int, **_: object) -> list[str]:
        asked.append(num_tokens)
        return ["Rome is a city."] * num_tokens

    monkeypatch.setattr(fitting, "write_own_text", write)
    state = fit_moments(lm, SITES, None, keep=False)
    assert state.moment(SITES[0]).keys_per_dimension == 10
    assert asked == [10 * lm.d_inner]


def test_results_are_kept_site_by_site(
    lm: LanguageModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fit_moments(lm, SITES, TEXTS)
    assert len(list((folder / "moments").iterdir())) == 2
    more = fit_moments(lm, [Site(2), Site(3)], TEXTS)
    assert len(list((folder / "moments").iterdir())) == 3
    monkeypatch.setattr(LanguageModel, "tap", None)
    assert fit_moments(lm, SITES, TEXTS) == first
    assert fit_moments(lm, [Site(2), Site(3)], TEXTS) == more
    assert fit_moments(lm, [Site(0)], TEXTS).moment_sites == (Site(0),)
    for other in (TEXTS[1:], Corpus(TEXTS, include_first_token=False), Corpus(TEXTS, pack=False)):
        with pytest.raises(TypeError):
            fit_moments(lm, SITES, other)
    with pytest.raises(TypeError):
        fit_moments(tiny_model("gpt2", seed=1), SITES, TEXTS)


def test_damaged_cache_is_computed_again(lm: LanguageModel, folder: Path) -> None:
    state = fit_moments(lm, SITES, TEXTS)
    first, second = sorted((folder / "moments").iterdir())
    content = first.read_bytes()
    whole = folder / "whole.safetensors"
    whole.write_bytes(content)
    first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    second.write_bytes(content[: len(content) // 2])
    with pytest.warns(UserWarning, match="computed again") as seen:
        assert fit_moments(lm, SITES, TEXTS) == state
    assert len([w for w in seen if "computed again" in str(w.message)]) == 2
    assert State.load(first) == State.load(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Few keys")
        assert fit_moments(lm, SITES, TEXTS) == state


def test_a_cache_that_cannot_be_written_costs_only_a_warning(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = fit_moments(lm, SITES, TEXTS, keep=False)
    (tmp_path / "file").touch()
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be written"):
        assert fit_moments(lm, SITES, TEXTS) == state


class Stop(Exception):
    """Ends a fit half way."""


def test_an_interrupted_fit_goes_on_with_the_same_result(
    lm: LanguageModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "BATCH_TOKENS", 32)
    monkeypatch.setattr(fitting, "_CHECKPOINT_TOKENS_PER_DIMENSION", 1)
    corpus = Corpus(TEXTS, length=32)
    whole = fit_moments(lm, SITES, corpus, keep=False)
    seen: list[int] = []

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "statistics":
            seen.append(done)
            if done > 0.6 * total:
                raise Stop

    with pytest.raises(Stop):
        fit_moments(lm, SITES, corpus, progress=stop)
    (part,) = (folder / "moments").iterdir()
    assert part.name.endswith(".part.safetensors")
    resumed: list[int] = []
    state = fit_moments(lm, SITES, corpus, progress=lambda stage, done, total: resumed.append(done))
    assert state == whole
    assert min(done for done in resumed if done > 32) > seen[len(seen) // 2]
    assert not part.exists()
    assert fit_moments(lm, SITES, corpus) == whole


def test_a_damaged_checkpoint_starts_again(
    lm: LanguageModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "BATCH_TOKENS", 32)
    monkeypatch.setattr(fitting, "_CHECKPOINT_TOKENS_PER_DIMENSION", 1)
    whole = fit_moments(lm, SITES, TEXTS, keep=False)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "statistics" and done > 0.8 * total:
            raise Stop

    with pytest.raises(Stop):
        fit_moments(lm, SITES, TEXTS, progress=stop)
    (part,) = (folder / "moments").iterdir()
    part.write_bytes(part.read_bytes()[:-5])
    with pytest.warns(UserWarning, match="computed again"):
        assert fit_moments(lm, SITES, TEXTS) == whole


def test_progress_ends_at_the_total(lm: LanguageModel) -> None:
    calls: list[tuple[str, int, int]] = []
    fit_moments(lm, SITES, TEXTS, progress=lambda *call: calls.append(call))
    total = [call[2] for call in calls if call[0] == "statistics"][-1]
    done = [call[1] for call in calls if call[0] == "statistics"]
    assert done == sorted(done)
    assert done[-1] == total


def test_few_keys_and_active_patches_are_told(lm: LanguageModel) -> None:
    with pytest.warns(UserWarning, match=r"Few keys: 0\.\d+ per dimension at 0\.mlp\.down, 2\.mlp"):
        state = fit_moments(lm, SITES, Corpus(TEXTS, num_tokens=40))
    about = state.meta["moments"]["0.mlp.down"]
    assert (about["keys_per_dimension"], about["shrinkage"]) == (40 / 128, 0.1)
    state.factor(SITES[0])
    from corrigenda.linalg.lowrank import LowRank
    from corrigenda.patch import WeightPatch, header_for

    d_out, d_in = lm.weight(SITES[0]).shape
    change = LowRank(torch.ones(d_out, 1).double(), torch.ones(d_in, 1).double())
    patch = WeightPatch({SITES[0]: change}, header_for(lm, method="x"))
    with patch.apply(lm), pytest.warns(UserWarning, match="edited model"):
        edited = fit_moments(lm, SITES, TEXTS)
    assert edited.meta["base_digest"] != lm.digest()


def test_the_model_is_left_as_it_was(lm: LanguageModel) -> None:
    before = lm.digest()
    fit_moments(lm, SITES, TEXTS, keep=False)
    assert lm.digest() == before


KILLED = """
import sys, torch
from corrigenda.statistics import Corpus, fit_moments
from corrigenda.statistics import fitting
from corrigenda.lm.sites import Site
from corrigenda.testing.tiny import tiny_model
fitting.BATCH_TOKENS, fitting._CHECKPOINT_TOKENS_PER_DIMENSION = 32, 1
print("ready", flush=True)
lm = tiny_model("gpt2", seed=0)
texts = open(sys.argv[1], encoding="utf-8").read().splitlines() * 5
fit_moments(lm, [Site(0), Site(2)], Corpus(texts, length=32),
            progress=lambda stage, done, total: print(done, flush=True))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_killed_fit_leaves_a_usable_cache(
    lm: LanguageModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(TEXTS), encoding="utf-8")
    run = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(text)], stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    for line in run.stdout:
        if line.strip().isdecimal() and int(line) > 1_500:
            break
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    monkeypatch.setattr(fitting, "BATCH_TOKENS", 32)
    monkeypatch.setattr(fitting, "_CHECKPOINT_TOKENS_PER_DIMENSION", 1)
    corpus = Corpus(TEXTS * 5, length=32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = fit_moments(lm, SITES, corpus)
    assert state == fit_moments(lm, SITES, corpus, keep=False)
    assert not [item for item in (folder / "moments").iterdir() if "part" in item.name]


def test_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("CORRIGENDA_CACHE")
    assert cache_folder().name == "corrigenda"
    assert (
        cache.hash_settings({"a": 1, "b": 2})
        == cache.hash_settings({"b": 2, "a": 1})
        != cache.hash_settings({"a": 1})
    )
