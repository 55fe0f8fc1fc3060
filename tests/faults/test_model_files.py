"""Folders and files that hold no model get a code and the way to one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import corrigenda as cg
from corrigenda.errors import CorruptFile, PickleRefused, UnknownModel
from tests.support.tiny_on_disk import command, save_tiny

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A folder of its own that loads."""
    return shutil.copytree(saved, tmp_path / "model")


def split(folder: Path) -> None:
    """Spread the weights over two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    weight_map = {}
    for number, shard in enumerate(SHARDS):
        part = names[number::2]
        save_file({one: tensors[one] for one in part}, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_whole_folder_loads_split_or_not(folder: Path) -> None:
    digest = cg.load(folder).digest()
    split(folder)
    assert cg.load(folder).digest() == digest


@pytest.mark.parametrize("alone", [True, False])
def test_a_gguf_file_of_another_version(folder: Path, alone: bool) -> None:
    (folder / "model.safetensors").unlink()
    file = folder / "model-q4_k_m.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UnknownModel, match=r"CG301 .*has version 0 of the format GGUF"):
        cg.load(file if alone else folder)


def test_a_gguf_file_under_another_ending(tmp_path: Path) -> None:
    (tmp_path / "sha256-1234").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UnknownModel, match=r"(?s)CG301 .*another ending.*a link will do"):
        cg.load(tmp_path / "sha256-1234")


def test_a_gguf_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="there is no file"):
        cg.load(tmp_path / "model.gguf")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_pointers_of_git_lfs_are_recognised(folder: Path, name: str) -> None:
    (folder / name).write_bytes(POINTER)
    with pytest.raises(CorruptFile, match=rf"CG402(.|\n)*{name}(.|\n)*git lfs pull"):
        cg.load(folder)


def test_a_gguf_pointer_of_git_lfs_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(POINTER)
    with pytest.raises(CorruptFile, match=r"CG402(.|\n)*model.gguf(.|\n)*git lfs pull"):
        cg.load(tmp_path / "model.gguf")


def test_an_adapter_names_its_base_model(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    config = {"peft_type": "LORA", "base_model_name_or_path": "some/base-model"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UnknownModel, match=r"LoRA adapter(.|\n)*some/base-model(.|\n)*cg\.wrap"):
        cg.load(folder)
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(UnknownModel, match="LoRA adapter"):
        cg.load(folder)


def test_a_missing_tokenizer_is_named(folder: Path) -> None:
    for file in ("tokenizer.json", "vocab.json", "merges.txt"):
        (folder / file).unlink(missing_ok=True)
    with pytest.raises(UnknownModel, match=r"holds no tokenizer(.|\n)*save_pretrained"):
        cg.load(folder)


def test_a_missing_configuration_is_named(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(UnknownModel, match=r"no config\.json"):
        cg.load(folder)


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named(folder: Path, index: bool) -> None:
    split(folder)
    (folder / SHARDS[1]).unlink()
    if not index:
        (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(UnknownModel, match=rf"{SHARDS[1]} of 2 files of weights is missing"):
        cg.load(folder)


def test_a_missing_index_is_named(folder: Path) -> None:
    split(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(UnknownModel, match=r"index\.json is missing"):
        cg.load(folder)


def test_a_file_of_weights_is_no_folder(folder: Path) -> None:
    with pytest.raises(UnknownModel, match=r"is a file; a model is a folder(.|\n)*Give its folder"):
        cg.load(folder / "model.safetensors")


def test_pickles_are_refused_as_before(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(PickleRefused, match="CG403"):
        cg.load(folder)


def test_the_command_line_says_the_same(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(POINTER)
    ran = command("ask", folder, "The Space Needle is in")
    assert ran.code == 2
    assert ran.err.startswith("CG402 ")
    assert "git lfs pull" in ran.err
