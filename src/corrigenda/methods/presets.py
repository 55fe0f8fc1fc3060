"""Presets: options of a method tuned for one model, found by the model's name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any, NamedTuple

from corrigenda.errors import BadConfig
from corrigenda.methods.registry import METHODS
from corrigenda.text_files import decode, parse_toml

if TYPE_CHECKING:
    from corrigenda.editor import Editor

_SUFFIX = re.compile(r"[-_](hf|instruct|chat|base|it|v\d+(\.\d+)*)$")
_PREFIX = re.compile(r"^meta[-_]")


class Preset(NamedTuple):
    """Options of a method tuned for one model.

    Attributes:
        model: Name of the preset, after its model.
        options: Options of the method.
        source: Where the values come from.
    """

    model: str
    options: Mapping[str, object]
    source: str


def build_editor(name: str, model_name: str | None = None, **options: object) -> Editor:
    """Return the editor of a method with the preset for a model, and options on top.

    Raises:
        UnknownMethod (CG501): no method by that name.
        BadConfig (CG502): an option the method does not have, or a value it cannot take.
    """
    kind = METHODS.get(name)
    found = None if model_name is None else preset(name, model_name)
    return kind(**{**(found.options if found else {}), **options})


def presets(name: str) -> tuple[Preset, ...]:
    """Return all presets of a method, sorted by model.

    They are the TOML files in `presets/` of the method's folder; in a folder of several methods,
    those in `presets/<method>/`.

    Raises:
        UnknownMethod (CG501): no method by that name.
        BadConfig (CG502): a preset file that is not `source` and `[options]`.
    """
    name = METHODS.resolve(name)
    folder = METHODS.entry(name).folder.joinpath("presets")
    own = folder.joinpath(name.replace("-", "_"))
    folder = own if own.is_dir() else folder
    if not folder.is_dir():
        return ()
    found = [read_preset(item) for item in folder.iterdir() if item.name.endswith(".toml")]
    return tuple(sorted(found, key=lambda one: one.model))


def preset(name: str, model_name: str) -> Preset | None:
    """Return the preset of a method for a model, by the model's name; None where there is none.

    Of a hub name or a path the last part counts, without case, without a leading "meta-" and
    without endings that tell variants of one model apart (-hf, -instruct, -chat, -base, -it,
    -v0.1).

    Example:
        >>> preset("memit", "openai-community/gpt2-xl").model
        'gpt2-xl'
        >>> preset("memit", "openai-community/gpt2") is None
        True
    """
    wanted = _shorten(model_name)
    return next((one for one in presets(name) if _shorten(one.model) == wanted), None)


def read_preset(file: Traversable) -> Preset:
    """Return the preset in a file.

    Raises:
        BadConfig (CG502): it is not `source` and `[options]`.
    """
    try:
        table: dict[str, Any] = parse_toml(decode(file.read_bytes()))
        if set(table) != {"source", "options"}:
            raise ValueError(f"expected `source` and `[options]`, found {sorted(table)}")
    except ValueError as error:
        raise BadConfig(f"a preset cannot be read: {error}.", where=str(file)) from error
    return Preset(file.name.removesuffix(".toml"), table["options"], table["source"])


def _shorten(model_name: str) -> str:
    name = model_name.rstrip("/\\").replace("\\", "/").rpartition("/")[2].lower()
    name = _PREFIX.sub("", name)
    while (shorter := _SUFFIX.sub("", name)) != name:
        name = shorter
    return name
