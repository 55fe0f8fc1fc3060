"""Patch files: portable, checked, never a pickle, never half."""

import json
import os
import pickle
import resource
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from corrigenda.errors import CorruptFile, NewerFormat, PickleRefused, WriteFailed
from corrigenda.linalg import LowRank
from corrigenda.lm.sites import Site
from corrigenda.patch import (
    Dense,
    Header,
    Patch,
    Rows,
    WeightPatch,
    load_patch,
    read_patch_file,
)


@pytest.fixture
def patch():
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    right = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    changes = {
        Site(1): LowRank(left, right),
        Site(1, "mlp.down", 3): LowRank(left.bfloat16(), right.bfloat16()),
        Site(2, "attn.out"): Dense(left.float() @ right.float().T),
        Site(3): Rows(torch.tensor([4, 1]), right.T.half(), 6),
    }
    header = Header(
        method="memit",
        config={"layers": [1, 2]},
        facts=({"prompt": "Caf\u00e9 \U0001f600 {x}", "target": "y"},),
        base_digest="abc",
        base_name="tiny",
        notes={"loss": [0.5, float("inf"), 1e-300]},
    )
    return WeightPatch(changes, header)


@pytest.fixture
def file(patch, tmp_path):
    return patch.save(tmp_path / "p.safetensors")


def test_loading_gives_an_equal_patch(patch, file):
    again = load_patch(file)
    assert again == patch
    assert again.digest() == patch.digest()
    assert isinstance(again, Patch)
    assert load_patch(str(file)) == patch


def test_equal_patches_give_equal_files(patch, file, tmp_path):
    load_patch(file).save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()


def test_files_do_not_depend_on_the_hash_seed(file, tmp_path):
    code = "import sys, corrigenda.patch as p; p.load_patch(sys.argv[1]).save(sys.argv[2])"
    for seed in "12":
        target = tmp_path / f"{seed}.safetensors"
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, file, target], env=environment, check=True)
        assert target.read_bytes() == file.read_bytes()


def test_an_empty_patch_can_be_saved(tmp_path):
    empty = WeightPatch({}, Header(method="none"))
    assert load_patch(empty.save(tmp_path / "e.safetensors")) == empty


def test_others_can_read_the_tensors_and_the_header(patch, file):
    assert set(load_file(file)) == set(patch.tensors())
    header, tensors = read_patch_file(file)
    assert header == patch.header
    assert torch.equal(tensors["3.mlp.down/index"], torch.tensor([4, 1]))


def test_every_truncation_is_found(file):
    content = file.read_bytes()
    for length in [*range(0, 40), *range(40, len(content), 97), len(content) - 1]:
        file.write_bytes(content[:length])
        with pytest.raises(CorruptFile, match="CG402"):
            load_patch(file)
    file.write_bytes(content + b"\0")
    with pytest.raises(CorruptFile):
        load_patch(file)


def test_every_flipped_bit_is_found(file):
    content = file.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    padding = length - len(content[:length].rstrip(b" "))
    for position in [*range(0, length - padding, 7), *range(length, len(content), 31)]:
        broken = bytearray(content)
        broken[position] ^= 0x04
        file.write_bytes(bytes(broken))
        with pytest.raises((CorruptFile, NewerFormat)):
            load_patch(file)


def rewritten(file, change):
    """The file with its header fields changed, and the old checksum."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    fields = json.loads(metadata["corrigenda"])
    change(fields)
    metadata["corrigenda"] = json.dumps(fields)
    save_file(load_file(file), file, metadata=metadata)


def test_a_header_changed_by_hand_is_found(file):
    rewritten(file, lambda fields: fields.update(base_digest="def"))
    with pytest.raises(CorruptFile, match="checksum"):
        load_patch(file)


def test_a_newer_format_says_so(file):
    rewritten(file, lambda fields: fields.update(format_version=99, surprise=True))
    with pytest.raises(NewerFormat, match=r"CG404.*version 99.*\n.*[Uu]pgrade"):
        load_patch(file)


def test_an_unknown_kind_says_so(patch, tmp_path):
    header = patch.header.model_copy(update={"kind": "codebook"})
    other = WeightPatch(patch.changes, header).save(tmp_path / "c.safetensors")
    with pytest.raises(NewerFormat, match='kind "codebook"'):
        load_patch(other)


def test_a_checked_file_with_strange_tensors_is_refused(tmp_path):
    class Strange(WeightPatch):
        def tensors(self):
            return {"1.mlp.down/middle": torch.ones(2)}

    strange = Strange({}, Header(method="m"))
    with pytest.raises(CorruptFile, match="no kind of change"):
        load_patch(strange.save(tmp_path / "s.safetensors"))


def test_files_that_are_no_patches(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CorruptFile, match="not a patch"):
        load_patch(tmp_path / "model.safetensors")
    (tmp_path / "text.safetensors").write_text("hello, this is no patch at all")
    with pytest.raises(CorruptFile):
        load_patch(tmp_path / "text.safetensors")
    for name in ("missing.safetensors", "."):
        with pytest.raises(CorruptFile, match="cannot be read"):
            load_patch(tmp_path / name)


class Boom:
    """Would run if it were ever unpickled."""

    def __reduce__(self):
        return os._exit, (42,)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pkl", ".PTH", ".ckpt"])
def test_pickle_names_are_refused_unread(tmp_path, suffix, patch):
    with pytest.raises(PickleRefused, match="CG403"):
        load_patch(tmp_path / f"absent{suffix}")
    with pytest.raises(PickleRefused):
        patch.save(tmp_path / f"p{suffix}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_streams_are_refused_under_any_name(tmp_path, protocol):
    path = tmp_path / "p.safetensors"
    path.write_bytes(pickle.dumps({"x": Boom(), "pad": "x" * 100}, protocol=protocol))
    with pytest.raises(PickleRefused, match="run code"):
        load_patch(path)


def test_torch_archives_are_refused_under_any_name(tmp_path):
    path = tmp_path / "p.safetensors"
    torch.save({"w": torch.ones(2)}, path)
    with pytest.raises(PickleRefused, match="zip"):
        load_patch(path)


def test_a_header_length_that_looks_like_a_pickle_is_read(tmp_path):
    """A table of 0x0280 bytes makes the file begin with the two bytes of a protocol 2 pickle."""
    for pad in range(1200):
        note = WeightPatch({}, Header(method="none", notes={"pad": "x" * pad}))
        path = note.save(tmp_path / "p.safetensors")
        if path.read_bytes()[:2] in {b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"}:
            assert load_patch(path) == note
            return
    pytest.fail("no such length was met")


def test_a_full_disk_keeps_the_old_patch(patch, file, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    big = WeightPatch({Site(0): Dense(torch.ones(300, 300))}, patch.header)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(WriteFailed, match="CG601"):
            big.save(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert load_patch(file) == patch
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]
