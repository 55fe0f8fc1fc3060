"""Lists of methods, shipped models and architectures, and editors by name."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from corrigenda.errors import BadConfig, UnknownSite
from corrigenda.methods import presets
from corrigenda.methods.registry import METHODS

if TYPE_CHECKING:
    from corrigenda.editor import Editor
    from corrigenda.lm.model import LanguageModel


class MethodRow(NamedTuple):
    """One method in the comparison table of the surveys.

    Attributes:
        name: Name for `edit` and `--method`.
        family: Family in the surveys' taxonomy.
        training: Whether something must be trained before the first edit.
        batch: Whether many facts can be edited at once.
        sequential: Whether edits may follow each other.
        area: Part of the model that changes.
        formula: Parameters changed or added, in words of the model's dimensions.
        parameters: Their number in the model given; None without a model, where it depends on the
            facts, and where the method finds no place to edit.
        group: Family in a word or two.
        changes: Part of the model that changes, in a few words.
    """

    name: str
    family: str
    training: bool
    batch: bool
    sequential: bool
    area: str
    formula: str
    parameters: int | None = None
    group: str = ""
    changes: str = ""


class ShippedModel(NamedTuple):
    """A model of the package: its `name`, whether it is `available` here, what it is `about`."""

    name: str
    available: bool
    about: str


class InstallableModel(NamedTuple):
    """A model that can be loaded by name where its package is installed.

    Attributes:
        name: Its name.
        installed: Whether the package is there.
        licence: Terms under which the model may be used.
        size: Bytes of its file.
        install: The command that installs it.
        about: Description in one line.
    """

    name: str
    installed: bool
    licence: str
    size: int
    install: str
    about: str


class FamilyRow(NamedTuple):
    """A supported architecture, with the `model_type` values that belong to it."""

    name: str
    model_types: tuple[str, ...]


class ModelList(NamedTuple):
    """Models of the package, supported architectures, and models of other packages."""

    shipped: tuple[ShippedModel, ...]
    families: tuple[FamilyRow, ...]
    installable: tuple[InstallableModel, ...]


def build_editor(
    lm: LanguageModel, method: str = "rome", *, layer: int | None = None, **options: object
) -> Editor:
    """Return the editor of a method with its preset for a model, and options on top.

    Args:
        lm: The model; its name selects the preset.
        method: Name of the method.
        layer: Sets `layer`, or `layers` to this one, whichever the method has.
        **options: Options of the method.

    Raises:
        UnknownMethod (CG501): no such method.
        BadConfig (CG502): an option the method does not have, or a value it cannot take.

    Example:
        ```python
        editor = cg.build_editor(lm, "memit", steps=40)
        patch = cg.edit(lm, facts, editor)
        ```
    """
    from corrigenda.lm.wrapping import require_lm

    lm = require_lm(lm)
    kind = METHODS.get(method)
    if layer is not None:
        name = "layer" if "layer" in kind.model_fields else "layers"
        options[name] = layer if name == "layer" else (layer,)
    return presets.build_editor(method, lm.name, **options)


def resolve_editor(
    lm: LanguageModel, editor: Editor | str, *, layer: int | None = None, **options: object
) -> Editor:
    """Return an editor given as an object, or by its name with the preset and options on top.

    Args:
        lm: The model; its name selects the preset.
        editor: An editor, which is taken as it is; or the name of a method.
        layer: As in `build_editor`; refused with an object.
        **options: Options of the method; refused with an object.

    Raises:
        UnknownMethod (CG501): no such method.
        BadConfig (CG502): options given with an object, or something that is no editor.
    """
    if "method" in options:
        raise BadConfig(
            "the argument for the method is called `editor`.",
            hint=f"Write editor={options['method']!r}, or give it as third argument.",
        )
    if isinstance(editor, str):
        return build_editor(lm, editor, layer=layer, **options)
    return _check_object(editor, options if layer is None else {"layer": layer, **options})


def _check_object(editor: object, options: Mapping[str, object]) -> Editor:
    from corrigenda.editor import Editor

    if not isinstance(editor, Editor):
        example = "cg.Rome(layer=5)"
        if isinstance(editor, type) and issubclass(editor, Editor):
            example = f"{editor.__name__}()"
        raise BadConfig(
            f"an editor or the name of a method was expected, not {editor!r}.",
            hint=f'Give an object such as {example}, or a name such as "rome".',
        )
    if options:
        kind = type(editor).__name__
        raise BadConfig(
            f"{', '.join(options)}: options cannot be given next to an editor object.",
            where=f"{kind}(...)",
            hint=f"Set them on the object, {kind}({next(iter(options))}=...), or give its name.",
        )
    return editor


def list_methods(lm: LanguageModel | None = None) -> tuple[MethodRow, ...]:
    """Return all methods with what they need and change; with a model, count the parameters."""
    if lm is not None:
        from corrigenda.lm.wrapping import require_lm

        lm = require_lm(lm)
    rows = []
    for name in METHODS.names():
        card = METHODS.card(name)
        parameters = None
        if lm is not None:
            # A method may have no place to edit in this model, such as one of experts.
            with contextlib.suppress(UnknownSite):
                parameters = build_editor(lm, name).num_parameters(lm)
        rows.append(
            MethodRow(
                name=name,
                family=str(card["family"]),
                training=bool(card["training"]),
                batch=bool(card["batch"]),
                sequential=bool(card["sequential"]),
                area=str(card["area"]),
                formula=str(card["parameters"]),
                parameters=parameters,
                # Cards of plug-ins may lack the short forms.
                group=str(card.get("group", card["family"])),
                changes=str(card.get("changes", card["area"])),
            )
        )
    return tuple(rows)


def list_models() -> ModelList:
    """Return the models of the package, those of other packages, and the known architectures."""
    from corrigenda.lm.families import FAMILIES
    from corrigenda.lm.model_names import PACKAGED

    folder = Path(str(files("corrigenda.pocket")))
    about = {
        "pocket": "Llama-style, trained by this project on facts of its own sentences",
        "pocket-gpt2": "its GPT-2-style twin",
    }
    shipped = tuple(
        ShippedModel(name, (folder / name / "config.json").is_file(), text)
        for name, text in about.items()
    )
    families = tuple(FamilyRow(row.name, tuple(row.model_types)) for row in FAMILIES)
    installable = tuple(
        InstallableModel(
            *(one.name, one.is_installed, one.licence, one.size, one.install, one.about)
        )
        for one in PACKAGED.values()
    )
    return ModelList(shipped, families, installable)
