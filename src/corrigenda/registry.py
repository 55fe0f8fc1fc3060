"""Methods by name, their cards and presets, found without importing torch."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from corrigenda.cards import Card, card_at, card_in, names_in, stem
from corrigenda.errors import BadConfig, UnknownMethod, did_you_mean

if TYPE_CHECKING:
    from corrigenda.editor import Editor

ENTRY_POINTS = "corrigenda.methods"
"""Entry points of plug-ins: `name = "package.module:EditorClass"`, with `module.md` beside it."""

_PACKAGE = "corrigenda.methods"
_SUFFIX = re.compile(r"[-_](hf|instruct|chat|base|it|v\d+(\.\d+)*)$")
_PREFIX = re.compile(r"^meta[-_]")


class Preset(NamedTuple):
    """Settings tuned for one model.

    Attributes:
        model: What the preset is called, after its model.
        options: Options of the method.
        source: Where the values come from.
    """

    model: str
    options: Mapping[str, object]
    source: str


def names() -> tuple[str, ...]:
    """Names of all methods: those with a card in `corrigenda/methods`, then plug-ins.

    A name is that of the module, with hyphens: `ft-l` is `methods/ft_l.py`.
    """
    own = names_in(_PACKAGE)
    return (*own, *sorted(set(_plug_ins()) - set(own)))


def editor_class(name: str) -> type[Editor]:
    """The class of a method; this imports it, and torch with it.

    Raises:
        UnknownMethod (CG501): no method by that name.
    """
    require(name)
    from corrigenda.editor import Editor

    plug_in = _plug_ins().get(name)
    if plug_in is not None:
        found = plug_in.load()
        assert issubclass(found, Editor), f"{plug_in.value} is no Editor"
        return found
    module = importlib.import_module(f"{_PACKAGE}.{stem(name)}")
    for kind in vars(module).values():
        if inspect.isclass(kind) and issubclass(kind, Editor) and getattr(kind, "name", "") == name:
            return kind
    raise AssertionError(f"{module.__name__} defines no Editor named {name!r}")


def build(name: str, model_name: str | None = None, **options: object) -> Editor:
    """Make an editor: the preset for `model_name` where there is one, the options given on top.

    Raises:
        UnknownMethod (CG501): no method by that name.
        BadConfig (CG502): an option the method does not have, or a value it cannot take.
    """
    kind = editor_class(name)
    found = None if model_name is None else preset(name, model_name)
    return kind(**{**(found.options if found else {}), **options})


def require(name: str) -> None:
    """Check a name.

    Raises:
        UnknownMethod (CG501): no method by that name; the message names the closest.
    """
    if name not in names():
        raise UnknownMethod(f'no method "{name}".', hint=did_you_mean(name, names()))


def card(name: str) -> dict[str, object]:
    """Front matter of a method's card: the TOML between its first two `+++` lines.

    Raises:
        UnknownMethod (CG501): no method by that name.
    """
    return _card(name).matter


def card_text(name: str) -> str:
    """Text of a method's card, Markdown, without the front matter.

    Raises:
        UnknownMethod (CG501): no method by that name.
    """
    return _card(name).text


def presets(name: str) -> tuple[Preset, ...]:
    """All presets of a method, by model.

    Raises:
        UnknownMethod (CG501): no method by that name.
        BadConfig (CG502): a preset file that is not `source` and `[options]`.
    """
    require(name)
    folder = files("corrigenda").joinpath("presets", stem(name))
    if not folder.is_dir():
        return ()
    found = [_read_preset(item) for item in folder.iterdir() if item.name.endswith(".toml")]
    return tuple(sorted(found, key=lambda one: one.model))


def preset(name: str, model_name: str) -> Preset | None:
    """The preset of a method for a model, by the model's name; None where there is none.

    Of a hub name or a path the last part counts, without case, without a leading "meta-" and
    without endings that tell variants of one model apart (-hf, -instruct, -chat, -base, -it,
    -v0.1).

    Example:
        >>> preset("memit", "openai-community/gpt2-xl").model
        'gpt2-xl'
        >>> preset("memit", "openai-community/gpt2") is None
        True
    """
    wanted = _plain(model_name)
    return next((one for one in presets(name) if _plain(one.model) == wanted), None)


def _plain(model_name: str) -> str:
    name = model_name.rstrip("/\\").replace("\\", "/").rpartition("/")[2].lower()
    name = _PREFIX.sub("", name)
    while (shorter := _SUFFIX.sub("", name)) != name:
        name = shorter
    return name


def _read_preset(file: Traversable) -> Preset:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
        if set(table) != {"source", "options"}:
            raise ValueError(f"expected `source` and `[options]`, found {sorted(table)}")
    except ValueError as error:
        raise BadConfig(f"a preset cannot be read: {error}.", where=str(file)) from error
    return Preset(file.name.removesuffix(".toml"), table["options"], table["source"])


@cache
def _plug_ins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _card(name: str) -> Card:
    require(name)
    plug_in = _plug_ins().get(name)
    if plug_in is None:
        return card_in(_PACKAGE, name)
    spec = importlib.util.find_spec(plug_in.module)
    assert spec is not None, f"{plug_in.value} cannot be found"
    assert spec.origin is not None, f"{plug_in.value} has no file"
    return card_at(Path(spec.origin).with_suffix(".md"))
