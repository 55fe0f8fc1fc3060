"""A model of half precision is loaded in float32 where that is faster: told, and never unasked."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

import corrigenda as cg
from corrigenda.cache_listing import clear_cache
from corrigenda.files import cache_folder
from corrigenda.lm import loading, product_speed
from corrigenda.run import runner
from corrigenda.run.spec import RunSpec
from corrigenda.testing.tiny import tiny_model


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path / "cache"))
    product_speed.is_slow.cache_clear()


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> dict[torch.dtype, float]:
    """What a product takes on this processor; the test decides."""
    taken = {torch.float32: 1.0, torch.bfloat16: 10.0, torch.float16: 1.5}
    monkeypatch.setattr(product_speed, "measure", taken.__getitem__)
    yield taken
    product_speed.is_slow.cache_clear()


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    lm = tiny_model("llama", layers=1, dtype=getattr(request, "param", torch.bfloat16))
    lm.model.save_pretrained(tmp_path / "tiny")
    lm.tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_slow_dtype_is_left_with_a_notice(
    folder: Path, seconds: dict[torch.dtype, float]
) -> None:
    with pytest.warns(UserWarning, match=r"loaded in float32, twice .*bfloat16.*--dtype bfloat16"):
        lm = cg.load(folder)
    assert {one.dtype for one in lm.model.parameters()} == {torch.float32}
    kept = cg.load(folder, dtype="bfloat16")
    for name, one in kept.model.named_parameters():
        assert torch.equal(dict(lm.model.named_parameters())[name], one.float())


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_never_against_a_dtype_given(
    folder: Path, seconds: dict[torch.dtype, float], dtype: torch.dtype | str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cg.load(folder, dtype=dtype).dtype == torch.bfloat16


@pytest.mark.parametrize("folder", [torch.float16, torch.float32], indirect=True)
def test_a_fast_dtype_is_kept(folder: Path, seconds: dict[torch.dtype, float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cg.load(folder).dtype in (torch.float16, torch.float32)
    assert len(list(cache_folder().glob("speed/*"))) == (cg.load(folder).dtype == torch.float16)


def test_the_measurement_is_remembered_on_disk(seconds: dict[torch.dtype, float]) -> None:
    assert product_speed.is_slow(torch.bfloat16)
    (file,) = (cache_folder() / "speed").iterdir()
    seconds[torch.bfloat16] = 1.0
    product_speed.is_slow.cache_clear()
    assert product_speed.is_slow(torch.bfloat16)
    file.write_text("nonsense")
    product_speed.is_slow.cache_clear()
    assert not product_speed.is_slow(torch.bfloat16)


def test_products_are_measured() -> None:
    assert all(product_speed.measure(one) > 0 for one in (torch.float32, torch.bfloat16))


def test_other_devices_are_not_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a processor does says nothing of another device."""

    def fail(_: torch.dtype) -> bool:
        raise AssertionError("asked")

    monkeypatch.setattr(loading, "is_slow", fail)
    with pytest.raises(AssertionError, match="asked"):
        cg.load(folder)
    with pytest.raises(cg.CorrigendaError):
        loading.load_pair(folder, dtype=None, device="meta", trust_remote_code=False)


def test_a_known_digest_is_that_of_the_dtype_loaded(
    folder: Path, seconds: dict[torch.dtype, float]
) -> None:
    spec = RunSpec(model=str(folder), editor={"name": "rome"}, benchmark={"name": "pocketedit"})
    with pytest.warns(UserWarning, match="float32"):
        slow = runner.model_digest(spec)
    seconds[torch.bfloat16] = 1.0
    product_speed.is_slow.cache_clear()
    clear_cache("speed")
    assert runner.model_digest(spec) == cg.load(folder).digest() != slow
