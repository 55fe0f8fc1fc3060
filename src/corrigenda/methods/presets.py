"""Presets: options of a method tuned for one model, found by the model's name without torch.

The preset of a model has the published form of the method. Where a public framework runs another
form, that is a preset of its own, such as `llama-2-7b-easyedit`, which is taken by name only and
whose notice is a warning. The card lists the options that make another method of it, `[variants]`.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any, NamedTuple

from corrigenda.errors import BadConfig, did_you_mean
from corrigenda.methods.registry import METHODS
from corrigenda.text_files import decode, parse_toml

if TYPE_CHECKING:
    from corrigenda.editor import Editor

_SUFFIX = re.compile(r"[-_](hf|instruct|chat|base|it|v\d+(\.\d+)*)$")
_PREFIX = re.compile(r"^meta[-_]")


class Preset(NamedTuple):
    """Options tuned for one model.

    Attributes:
        model: Name of the preset: its model, with a suffix for a framework's variant.
        options: Options of the method.
        source: Origin of the values.
        notice: How the variant differs from the published method; empty where it does not.
    """

    model: str
    options: Mapping[str, object]
    source: str
    notice: str = ""


def build_editor(
    name: str, model_name: str | None = None, *, preset: object = None, **options: object
) -> Editor:
    """Make an editor: the preset for `model_name` where there is one, the options given on top.

    Args:
        name: Name of the method.
        model_name: Name of the model, which selects the preset.
        preset: Name of a preset to take instead, such as a framework's variant.
        **options: Options of the method.

    Raises:
        UnknownMethod (CG501): no method by that name.
        BadConfig (CG502): an option the method does not have, a value it cannot take, or no preset
            by that name.
    """
    kind = METHODS.get(name)
    if preset is not None:
        options = {"preset": preset, **options}
    return kind(**complete_options(name, model_name, options))


def complete_options(
    name: str, model_name: str | None, options: Mapping[str, object]
) -> dict[str, object]:
    """Return the options of an editor: those of the preset, and those given on top.

    The option `preset` names a preset to take instead of the model's. A preset that is not the
    published form of its method warns.

    Raises:
        UnknownMethod (CG501): no method by that name.
        BadConfig (CG502): no preset by that name.
    """
    given = dict(options)
    chosen = given.pop("preset", None)
    if chosen is not None:
        found = named_preset(name, str(chosen))
    else:
        found = None if model_name is None else preset(name, model_name)
    if found is not None and found.notice:
        warnings.warn(f"{name}, preset {found.model}: {found.notice}", stacklevel=3)
    return {**(found.options if found else {}), **given}


def named_preset(name: str, preset_name: str) -> Preset:
    """Return the preset of a method by its own name.

    Raises:
        UnknownMethod (CG501): no method by that name.
        BadConfig (CG502): no preset by that name; the message has the closest.
    """
    known = {one.model: one for one in presets(name)}
    if preset_name not in known:
        raise BadConfig(
            f'no preset "{preset_name}".',
            where=f"method {name}",
            hint=did_you_mean(preset_name, list(known)) if known else "The method has none.",
        )
    return known[preset_name]


def variant_label(name: str, options: Mapping[str, object]) -> str:
    """Return the name of a method for tables, with the variant that options make of it.

    A word is always shown, a number or a switch where it differs from the published form.

    Args:
        name: Name of the method.
        options: Options given; `preset` among them names a preset. The presets of models do not
            change the variant.

    Example:
        >>> variant_label("rome", {}), variant_label("rome", {"use_moment": False})
        ('rome (r-rome)', 'rome (r-rome, use_moment=false)')
        >>> variant_label("memit", {"layers": [3]})
        'memit'
    """
    published = METHODS.card(name).get("variants", {})
    assert isinstance(published, dict), "a table of the card"
    preset_name = options.get("preset")
    own = named_preset(name, str(preset_name)).options if preset_name is not None else {}
    given = {**own, **options}
    parts = []
    for option, usual in published.items():
        value = given.get(option, usual)
        if isinstance(value, str):
            parts.append(value)
        elif value != usual:
            parts.append(f"{option}={json.dumps(value)}")
    return f"{name} ({', '.join(parts)})" if parts else name


def presets(name: str) -> tuple[Preset, ...]:
    """Return all presets of a method, sorted by model.

    They are the TOML files in `presets/` of the method's folder; in a folder of several methods,
    those in `presets/<method>/`.

    Raises:
        UnknownMethod (CG501): no method by that name.
        BadConfig (CG502): a preset file that cannot be read.
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
        BadConfig (CG502): it is not `source`, perhaps `notice`, and `[options]`.
    """
    try:
        table: dict[str, Any] = parse_toml(decode(file.read_bytes()))
        if set(table) - {"notice"} != {"source", "options"}:
            raise ValueError(f"expected `source` and `[options]`, found {sorted(table)}")
    except ValueError as error:
        raise BadConfig(f"a preset cannot be read: {error}.", where=str(file)) from error
    name, notice = file.name.removesuffix(".toml"), table.get("notice", "")
    return Preset(name, table["options"], table["source"], notice)


def _shorten(model_name: str) -> str:
    name = model_name.rstrip("/\\").replace("\\", "/").rpartition("/")[2].lower()
    name = _PREFIX.sub("", name)
    while (shorter := _SUFFIX.sub("", name)) != name:
        name = shorter
    return name
