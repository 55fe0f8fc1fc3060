"""Files over which the weights of a model are spread."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from corrigenda.text_files import read_text

_INDEX = "model.safetensors.index.json"


def find_shards(model: str) -> Mapping[str, str] | None:
    """Return the file of each weight of a model; None where it is one file, or not on this disk.

    Args:
        model: A folder, or a name on the hub of which files are in the cache.
    """
    path: object = Path(model) / _INDEX
    if not Path(model).is_dir():
        try:
            path = try_to_load_from_cache(model, _INDEX)
        except ValueError:
            return None
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return None
    files = json.loads(read_text(path)).get("weight_map")
    return cast("Mapping[str, str]", files) if isinstance(files, dict) else None


def spread_as(folder: Path, shards: Mapping[str, str]) -> None:
    """Spread the weights in a folder over files as another model's are.

    Nothing is done where the two hold weights of other names, as after a change of format.

    Args:
        folder: A folder that `save_pretrained` wrote.
        shards: File of each weight.
    """
    places = _find_weights(folder)
    if places.keys() != shards.keys() or {path.name for path in places.values()} == set(
        shards.values()
    ):
        return
    old = set(places.values())
    moved: dict[Path, Path] = {}
    for path in old:
        moved[path] = path.rename(path.with_name(f"old-{path.name}"))
    total = 0
    for name in sorted(set(shards.values())):
        tensors: dict[str, Tensor] = {}
        for weight in sorted(key for key, file in shards.items() if file == name):
            with safe_open(moved[places[weight]], framework="pt") as opened:
                tensors[weight] = opened.get_tensor(weight)
        total += sum(one.numel() * one.element_size() for one in tensors.values())
        save_file(tensors, folder / name, metadata={"format": "pt"})
    for path in moved.values():
        path.unlink()
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(shards.items()))}
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _find_weights(folder: Path) -> dict[str, Path]:
    """Return the file that holds each weight."""
    places: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as opened:
            places |= dict.fromkeys(opened.keys(), path)
    return places
