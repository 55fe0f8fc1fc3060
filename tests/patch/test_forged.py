"""Files that hold anything under a right checksum: CG402, never a raw error, never a patch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from corrigenda.errors import CorrigendaError, CorruptFile, WrongBase
from corrigenda.lm.sites import Site
from corrigenda.methods.presets import build_editor
from corrigenda.methods.registry import METHODS
from corrigenda.patch import Dense, Header, ModulePatch, WeightPatch, load_patch, save_patch
from corrigenda.patch.changes import digest_of
from corrigenda.patch.file import _checksum
from corrigenda.patch.forms import require_forms, require_options
from corrigenda.statistics import Corpus
from corrigenda.testing.tiny import tiny_model
from tests.laws.test_laws import ANSWERS, FACTS, TEXTS, VARIANTS

KINDS = (
    *("calinet", "deepedit", "grace", "ice", "ike", "mello", "melo", "prompt", "rag"),
    *("serac", "t-patcher", "truthx", "wise"),
)


class Forged:
    """Anything that can be written as a patch."""

    def __init__(self, header: Header, tensors: dict[str, torch.Tensor]) -> None:
        self.header, self._tensors = header, tensors

    def tensors(self) -> dict[str, torch.Tensor]:
        return self._tensors


def refused(header: Header, tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_patch(Forged(header, tensors), path)  # type: ignore[arg-type]
    with pytest.raises(CorruptFile, match="CG402"):
        load_patch(path)


@pytest.fixture(scope="module", autouse=True)
def _cache_folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORRIGENDA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def made(request):
    """A patch of a kind, from the settings with which the laws are checked."""
    method = request.param
    lm = tiny_model("gpt2")
    editor = build_editor(method, **VARIANTS[method][0])
    material = ANSWERS if method == "truthx" else FACTS
    material = material if editor.requires.training_set else Corpus(TEXTS, length=32)
    facts = FACTS if editor.supports.batch else FACTS[:1]
    patch = editor.edit(lm, facts, editor.fit(lm, material)).patch
    assert isinstance(patch, ModulePatch)
    return lm, patch


@pytest.mark.parametrize("made", KINDS, indirect=True)
def test_each_kind_refuses_tensors_and_options_that_are_not_its_own(made, tmp_path) -> None:
    _, patch = made
    path = tmp_path / "forged.safetensors"
    assert load_patch(patch.save(path)) == patch
    assert type(patch).forms is not None
    tensors, header = patch.tensors(), patch.header
    assert tensors
    for name, tensor in tensors.items():
        others = {other: one for other, one in tensors.items() if other != name}
        if not name.startswith("centres/") and len(tensors) > patch.may_be_bare:
            refused(header, others, path)
        for wrong in wrong_forms(tensor):
            refused(header, {**others, name: wrong}, path)
    for name in ("surprise", "0/surprise", "keys/0"):
        refused(header, {**tensors, name: torch.ones(2)}, path)
    for group, declared in {"config": patch.options, "notes": patch.noted}.items():
        given = getattr(header, group)
        for name in declared:
            others = {other: one for other, one in given.items() if other != name}
            for wrong in (others, {**given, name: {"a": []}}, {**given, name: [[]]}):
                refused(header.model_copy(update={group: wrong}), tensors, path)
    for fact in ({"prompt": 3}, {"prompt": "a", "target": "b", "surprise": 1}, {}):
        facts = (fact, *header.facts[1:])
        refused(header.model_copy(update={"facts": facts}), tensors, path)
    other = next(kind for kind in KINDS if kind != patch.kind)
    refused(header.model_copy(update={"kind": other}), tensors, path)
    refused(header.model_copy(update={"kind": "weights"}), tensors, path)


def wrong_forms(tensor: torch.Tensor) -> list[torch.Tensor]:
    wrong = [tensor[None], tensor.bool(), tensor.float().to(torch.float8_e4m3fn)]
    wrong += [tensor.long()] if tensor.is_floating_point() else [tensor.float()]
    if tensor.dim():
        wrong.append(tensor[:-1].clone())
    return wrong


@pytest.mark.parametrize("made", ["grace", "t-patcher", "calinet"], indirect=True)
def test_a_model_of_other_widths_is_refused_even_by_force(made) -> None:
    _, patch = made
    other = tiny_model("gptj")
    other = type(other)(narrow(other.model), other.tokenizer)
    with pytest.raises(WrongBase, match=r"CG401(.|\n)*not fit"):
        patch.apply(other, force=True)
    assert not other.patches


def narrow(model):
    config = type(model.config)(**{**model.config.to_dict(), "n_embd": 16, "rotary_dim": 4})
    return type(model)(config)


@pytest.mark.parametrize("method", METHODS.names())
def test_every_kind_declares_its_tensors(method: str) -> None:
    from corrigenda.patch.module import module_class

    kind = module_class(method)
    assert kind is None or not issubclass(kind, ModulePatch) or kind.forms is not None


def weights() -> WeightPatch:
    return WeightPatch({Site(1): Dense(torch.ones(4, 3))}, Header(method="m"))


@pytest.mark.parametrize(
    "tensors",
    [
        {"delta": torch.ones(4, 3).to(torch.float8_e4m3fn)},
        {"delta": torch.ones(4, 3, dtype=torch.bool)},
        {"delta": torch.ones(4, 3, dtype=torch.long)},
        {"delta": torch.ones(4)},
        {"delta": torch.ones(2, 4, 3)},
        {"left": torch.ones(4, 1)},
        {"left": torch.ones(4, 1), "right": torch.ones(3, 2)},
        {"left": torch.ones(4, 1), "right": torch.ones(3)},
        {
            "index": torch.tensor([True]),
            "values": torch.ones(1, 3),
            "d_out": torch.tensor(4),
        },
        {"index": torch.tensor([1]), "values": torch.ones(1, 3), "d_out": torch.tensor([4, 4])},
        {"index": torch.tensor([1]), "values": torch.ones(1, 3), "d_out": torch.tensor(4.5)},
        {"index": torch.tensor([9]), "values": torch.ones(1, 3), "d_out": torch.tensor(4)},
        {"index": torch.tensor([[1]]), "values": torch.ones(1, 3), "d_out": torch.tensor(4)},
        {"index": torch.tensor([1, 2]), "values": torch.ones(1, 3), "d_out": torch.tensor(4)},
    ],
)
def test_changes_of_weights(tensors: dict[str, torch.Tensor], tmp_path) -> None:
    named = {f"1.mlp.down/{name}": tensor for name, tensor in tensors.items()}
    refused(Header(method="m"), named, tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["delta", "1.mlp/delta", "-1.mlp.down/delta", "x/y/delta", ""])
def test_names_of_sites(name: str, tmp_path) -> None:
    refused(Header(method="m"), {name: torch.ones(2, 2)}, tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        '"format_version":Infinity',
        '"format_version":NaN',
        '"format_version":0',
        '"format_version":-1',
        '"format_version":1.5',
        '"format_version":"1"',
        '"format_version":true',
        '"format_version":null',
        '"format_version":[1]',
        '"format_version":{}',
    ],
)
def test_versions_of_the_format(change: str, tmp_path) -> None:
    text = weights().header.to_json().replace('"format_version":1', change)
    path = tmp_path / "v.safetensors"
    write(path, text)
    with pytest.raises(CorruptFile, match="CG402"):
        load_patch(path)


@pytest.mark.parametrize(
    "text",
    [
        "3",
        "[]",
        "null",
        '"text"',
        "[" * 5_000 + "]" * 5_000,
        '{"a":' * 5_000 + "1" + "}" * 5_000,
        "9" * 5_000,
        '{"format_version":1}',
        '{"format_version":1,"method":3}',
        '{"format_version":1,"method":"m","facts":3}',
        '{"format_version":1,"method":"m","surprise":1}',
        '{"format_version":1,"method":"m","kind":7}',
        '{"format_version":1,"method":"m","notes":[1]}',
        '{"format_version":' + "9" * 5_000 + "}",
    ],
)
def test_headers(text: str, tmp_path) -> None:
    path = tmp_path / "h.safetensors"
    write(path, text)
    with pytest.raises(CorruptFile, match="CG402"):
        load_patch(path)


def write(path: Path, header: str) -> None:
    tensors = weights().tensors()
    metadata = {"corrigenda": header, "checksum": _checksum(header, tensors)}
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize("metadata", [[], "text", 3, {"corrigenda": 3}, {"corrigenda": None}])
def test_metadata_that_is_no_table_of_texts(metadata: object, tmp_path) -> None:
    table = json.dumps({"__metadata__": metadata}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(table).to_bytes(8, "little") + table)
    with pytest.raises(CorruptFile, match="CG402"):
        load_patch(path)


def test_a_deep_table_of_tensors(tmp_path) -> None:
    table = b'{"__metadata__":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001
    path = tmp_path / "d.safetensors"
    path.write_bytes(len(table).to_bytes(8, "little") + table)
    with pytest.raises(CorruptFile, match="CG402"):
        load_patch(path)


def test_forms() -> None:
    forms = {"keys": "float n d", "*/a": "float n k", "*/b?": "int k", "text": "bytes t"}
    good = {
        "keys": torch.ones(2, 3),
        "text": torch.zeros(5, dtype=torch.uint8),
        "0/a": torch.ones(2, 4),
        "1/a": torch.ones(2, 7),
        "1/b": torch.ones(7, dtype=torch.long),
    }
    require_forms(forms, good, {"d": 3})
    for change, match in (
        ({"1/b": torch.ones(6, dtype=torch.long)}, "k = 7"),
        ({"1/a": torch.ones(3, 7)}, "n = 2"),
        ({"keys": torch.ones(2, 4)}, "d = 3"),
        ({"other": torch.ones(1)}, "no place"),
    ):
        with pytest.raises(ValueError, match=match):
            require_forms(forms, {**good, **change}, {"d": 3})
    with pytest.raises(ValueError, match="keys is missing"):
        require_forms(forms, {"text": good["text"]}, {})
    with pytest.raises(ValueError, match="2/a is missing"):
        require_forms(forms, {**good, "2/b": good["1/b"]}, {})
    require_options(
        {"a": float, "b": (int, type(None)), "c": ("x", "y")}, {"a": 1, "b": None, "c": "x"}
    )
    for given in ({"a": True}, {"a": "1"}, {}):
        with pytest.raises(ValueError, match='option "a"'):
            require_options({"a": float}, given)
    assert len(digest_of(good)) == 64
    assert issubclass(CorruptFile, CorrigendaError)
