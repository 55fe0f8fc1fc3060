"""Check of a model's files: what is missing or of another kind is named before loading."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from corrigenda.errors import CorrigendaError, CorruptFile, PickleRefused, UnknownModel

_PICKLES = ("*.bin", "*.pt", "*.pth")
_TOKENIZERS = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"),
    *("sentencepiece.bpe.model", "tekken.json"),
)
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_GGUF = b"GGUF"
_POINTER = b"version https://git-lfs.github.com/spec/"
_LAYOUT = "A model folder has config.json, model.safetensors and tokenizer.json."


def check_model_files(path: Path, name: str) -> None:
    """Refuse a path that holds no model that can be loaded, and name what it holds instead.

    Args:
        path: A folder, a file that is no `.gguf` file, or a name on the hub, which is left alone.
        name: The model's name, for messages.

    Raises:
        UnknownModel (CG301): a file; a LoRA adapter; no weights, configuration or tokenizer; or a
            missing shard.
        CorruptFile (CG402): Git LFS pointers in place of the files.
        PickleRefused (CG403): pickled weights only.
    """
    if path.is_file():
        check_pointers([path], name)
        raise _refuse_file(path, name)
    if not path.is_dir():
        if path.suffix.lower() == ".gguf":
            raise UnknownModel(f"there is no file {path}.", where=name, hint=_LAYOUT)
        return
    check_pointers(sorted(path.iterdir()), name)
    for problem in (_find_adapter, _find_weights, _find_shard, _find_rest):
        error = problem(path, name)
        if error is not None:
            raise error


def _refuse_file(file: Path, name: str) -> CorrigendaError:
    if _begins_with(file, _GGUF):
        return UnknownModel(
            f"{file.name} is a GGUF file under another ending.",
            where=name,
            hint="Give it a name that ends in .gguf; a link will do.",
        )
    return UnknownModel(
        f"{file.name} is a file; a model is a folder, or a file ending in .gguf.",
        where=name,
        hint=f"Give its folder, {file.parent}. {_LAYOUT}",
    )


def check_pointers(paths: Sequence[Path], name: str) -> None:
    """Refuse the files of a clone without Git LFS, whose large files are pointers.

    Raises:
        CorruptFile (CG402): some are.
    """
    pointers = [one for one in paths if one.is_file() and _begins_with(one, _POINTER)]
    if pointers:
        names = ", ".join(one.name for one in pointers[:3])
        raise CorruptFile(
            f"{names} {'are' if len(pointers) > 1 else 'is'} a pointer of Git LFS, not the file "
            "itself.",
            where=name,
            hint=f'Run "git lfs install" and "git lfs pull" in {pointers[0].parent}, or download '
            "the model again.",
        )


def _find_adapter(folder: Path, name: str) -> CorrigendaError | None:
    config = folder / "adapter_config.json"
    if not config.is_file() or (folder / "config.json").is_file():
        return None
    base = str(_read_table(config).get("base_model_name_or_path") or "its base model")
    return UnknownModel(
        f"the folder holds a LoRA adapter, not a model; its base model is {base}.",
        where=name,
        hint="Load the base model with transformers, the adapter with peft "
        f'(PeftModel.from_pretrained(model, "{folder}")), and give both to '
        "cg.wrap(model, tokenizer).",
    )


def _find_weights(folder: Path, name: str) -> CorrigendaError | None:
    if any(folder.glob("*.safetensors")):
        return None
    pickles = [file.name for pattern in _PICKLES for file in folder.glob(pattern)]
    if pickles:
        return PickleRefused(
            f"{pickles[0]} is a pickle file; opening it could run code.",
            where=name,
            hint="Load it once where you trust it and save it again: save_pretrained writes "
            "safetensors.",
        )
    return UnknownModel("the folder holds no *.safetensors file.", where=name, hint=_LAYOUT)


def _find_shard(folder: Path, name: str) -> CorrigendaError | None:
    """Return the error of a folder without some of the files over which weights are spread."""
    wanted: set[str] = set()
    index = folder / _INDEX
    if index.is_file():
        files = _read_table(index).get("weight_map")
        wanted |= set(map(str, files.values())) if isinstance(files, dict) else set()
    for file in folder.glob("*.safetensors"):
        found = _SHARD.fullmatch(file.name)
        if found:
            stem, total = found[1], int(found[3])
            wanted |= {f"{stem}-{n:05}-of-{total:05}.safetensors" for n in range(1, total + 1)}
    missing = sorted(one for one in wanted if not (folder / one).is_file())
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return UnknownModel(
            f"{missing[0]}{others} of {len(wanted)} files of weights "
            f"{'are' if others else 'is'} missing.",
            where=name,
            hint="Download the model again, or copy the whole folder.",
        )
    if wanted and not index.is_file() and not (folder / "model.safetensors").is_file():
        return UnknownModel(
            f"{_INDEX} is missing, which says where each weight is.",
            where=name,
            hint="Download the model again, or copy the whole folder.",
        )
    return None


def _find_rest(folder: Path, name: str) -> CorrigendaError | None:
    if not (folder / "config.json").is_file():
        return UnknownModel("the folder holds no config.json.", where=name, hint=_LAYOUT)
    if not any((folder / file).is_file() for file in _TOKENIZERS):
        return UnknownModel(
            "the folder holds no tokenizer.",
            where=name,
            hint="Save the one the model was trained with into it: "
            f'tokenizer.save_pretrained("{folder}").',
        )
    return None


def _begins_with(file: Path, beginning: bytes) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(len(beginning)) == beginning
    except OSError:
        return False


def _read_table(file: Path) -> dict[str, object]:
    """Return a JSON object, empty where the file holds none."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
