"""Presets: options of a method tuned for one model, found by the model's name without torch.

A preset is found by the name of the model, else by its shape, where the preset says of which shape
its model is; then a warning names it. The preset of a model has the published form of the method.
Where a public framework runs another form, that is a preset of its own, such as
`llama-2-7b-easyedit`, which is taken by name only and whose notice is a warning. The card lists the
options that make another method of it, `[variants]`.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from corrigenda.errors import BadConfig, did_you_mean
from corrigenda.methods.registry import METHODS
from corrigenda.text_files import decode, parse_toml

if TYPE_CHECKING:
    from corrigenda.editor import Editor

_SUFFIX = re.compile(r"[-_](hf|instruct|chat|base|it|v\d+(\.\d+)*)$")
_PREFIX = re.compile(r"^meta[-_]")
_ENDING = ".toml"


class PresetShape(NamedTuple):
    """Family and sizes of a preset's model; the same in every folder and dtype."""

    family: str
    num_layers: int
    d_model: int
    d_inner: int
    vocabulary: int


class Preset(NamedTuple):
    """Options tuned for one model.

    Attributes:
        model: Name of the preset: its model, with a suffix for a framework's variant.
        options: Options of the method.
        source: Origin of the values.
        notice: How the variant differs from the published method; empty where it does not.
        method: Name of the method, where the file says it.
        base: What the file says of the model: name, digest, dtype and the fields of `PresetShape`.
    """

    model: str
    options: Mapping[str, object]
    source: str
    notice: str = ""
    method: str = ""
    base: Mapping[str, object] = MappingProxyType({})

    @property
    def shape(self) -> PresetShape | None:
        """The shape of its model, where the file says it."""
        known = [self.base.get(name) for name in PresetShape._fields]
        return None if None in known else PresetShape(*known)  # type: ignore[arg-type]  # checked when read

    def fits(self, shape: PresetShape | None) -> bool:
        """Return whether the shape of a model is that of its own, as far as both are known."""
        return shape is None or self.shape is None or self.shape == shape


def build_editor(
    name: str,
    model_name: str | None = None,
    *,
    preset: object = None,
    shape: PresetShape | None = None,
    given: Sequence[Preset] = (),
    **options: object,
) -> Editor:
    """Make an editor: the preset for `model_name` where there is one, the options given on top.

    Args:
        name: Name of the method.
        model_name: Name of the model, which selects the preset.
        preset: A preset to take instead: its name, such as a framework's variant, or a file.
        shape: Shape of the model, where it is known.
        given: Presets of this model that come before those of the methods.
        **options: Options of the method.

    Raises:
        UnknownMethod (CG501): no method by that name.
        BadConfig (CG502): an option the method does not have, a value it cannot take, or no preset
            by that name.
    """
    kind = METHODS.get(name)
    if preset is not None:
        options = {"preset": preset, **options}
    return kind(**complete_options(name, model_name, options, shape=shape, given=given))


def complete_options(
    name: str,
    model_name: str | None,
    options: Mapping[str, object],
    *,
    shape: PresetShape | None = None,
    given: Sequence[Preset] = (),
) -> dict[str, object]:
    """Return the options of an editor: those of the preset, and those given on top.

    The option `preset` names a preset, or the file of one, to take instead of the model's. A preset
    that is not the published form of its method warns, and so does one of a model that has another
    name or another shape.

    Raises:
        UnknownMethod (CG501): no method by that name.
        BadConfig (CG502): no preset by that name.
    """
    own = dict(options)
    chosen = own.pop("preset", None)
    if chosen is not None:
        found = named_preset(name, str(chosen))
    elif model_name is None:
        found = None
    else:
        found = _find_given(name, given) or _find_by_model(name, model_name, shape)
    if found is not None and found.notice:
        warnings.warn(f"{name}, preset {found.model}: {found.notice}", stacklevel=3)
    if found is not None and not found.fits(shape):
        warnings.warn(
            f"{name}: the preset {found.model} was tuned on a model of another shape.", stacklevel=3
        )
    return {**(found.options if found else {}), **own}


def _find_given(name: str, given: Sequence[Preset]) -> Preset | None:
    name = METHODS.resolve(name)
    return next((one for one in given if one.method == name), None)


def _find_by_model(name: str, model_name: str, shape: PresetShape | None) -> Preset | None:
    """Return the preset of a model by its name, else with a warning by its shape."""
    named = preset(name, model_name)
    if named is not None and named.fits(shape):
        return named
    if named is not None:
        warnings.warn(
            f"{name}: the preset {named.model} is not taken: {model_name} has another shape than "
            "the model it was tuned on.",
            stacklevel=4,
        )
    alike = [one for one in presets(name) if shape is not None and one.shape == shape]
    if alike:
        warnings.warn(
            f"{name}: the preset {alike[0].model} is taken, which was tuned on a model of the same "
            f"shape as {model_name}.",
            stacklevel=4,
        )
    return alike[0] if alike else None


def named_preset(name: str, preset_name: str) -> Preset:
    """Return the preset of a method by its own name, or from a TOML file.

    Raises:
        UnknownMethod (CG501): no method by that name.
        BadConfig (CG502): no preset by that name, and the message has the closest; or a file that
            cannot be read, or is of another method.
    """
    if preset_name.endswith(_ENDING):
        found = read_preset(Path(preset_name))
        if found.method not in ("", METHODS.resolve(name)):
            raise BadConfig(
                f"the preset is one of {found.method}, not of {name}.",
                where=preset_name,
                hint=f"Give --method {found.method}.",
            )
        return found
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
    found = [read_preset(item) for item in folder.iterdir() if item.name.endswith(_ENDING)]
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
        BadConfig (CG502): it is not `source` and `[options]`, with `notice`, or with `method`,
            `[model]` and `[evidence]` as `corrigenda tune` writes them.
    """
    try:
        table: dict[str, Any] = parse_toml(decode(file.read_bytes()))
        if set(table) - {"notice", "method", "model", "evidence"} != {"source", "options"}:
            raise ValueError(f"expected `source` and `[options]`, found {sorted(table)}")
        base: dict[str, Any] = table.get("model", {})
        numbers = [base.get(name, 0) for name in PresetShape._fields[1:]]
        if not all(isinstance(one, int) for one in numbers):
            raise ValueError("a size in [model] is no whole number")
    except (OSError, ValueError) as error:
        raise BadConfig(f"a preset cannot be read: {error}.", where=str(file)) from error
    name, notice = file.name.removesuffix(_ENDING), table.get("notice", "")
    return Preset(
        name, table["options"], table["source"], notice, str(table.get("method", "")), base
    )


def _shorten(model_name: str) -> str:
    name = model_name.rstrip("/\\").replace("\\", "/").rpartition("/")[2].lower()
    name = _PREFIX.sub("", name)
    while (shorter := _SUFFIX.sub("", name)) != name:
        name = shorter
    return name
