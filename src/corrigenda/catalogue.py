"""What there is: methods with what they need and change, models of the package, architectures."""

from __future__ import annotations

import contextlib
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from corrigenda.errors import UnknownSite
from corrigenda.methods import presets
from corrigenda.methods.registry import METHODS

if TYPE_CHECKING:
    from corrigenda.editor import Editor
    from corrigenda.lm.model import LanguageModel


class MethodRow(NamedTuple):
    """One line of the surveys' comparison of methods.

    Attributes:
        name: Name for `edit` and `--method`.
        family: Family in the surveys' taxonomy.
        training: Whether something must be trained before the first edit.
        batch: Whether many facts are edited at once.
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


class Shipped(NamedTuple):
    """A model of the package: its `name`, whether it is `available` here, what it is `about`."""

    name: str
    available: bool
    about: str


class FamilyRow(NamedTuple):
    """An architecture that is understood, and the `model_type` values that lead to it."""

    name: str
    model_types: tuple[str, ...]


class Listing(NamedTuple):
    """Models of the package and architectures understood."""

    shipped: tuple[Shipped, ...]
    families: tuple[FamilyRow, ...]


def build_editor(
    lm: LanguageModel, method: str, *, layer: int | None = None, **options: object
) -> Editor:
    """Make an editor for a model: its preset where there is one, the options given on top.

    Args:
        lm: The model; its name selects the preset.
        method: Name of the method.
        layer: Sets `layer`, or `layers` to this one, whichever the method has.
        **options: Options of the method.

    Raises:
        UnknownMethod (CG501): no such method.
        BadConfig (CG502): an option the method does not have, or a value it cannot take.
    """
    kind = METHODS.get(method)
    if layer is not None:
        name = "layer" if "layer" in kind.model_fields else "layers"
        options[name] = layer if name == "layer" else (layer,)
    return presets.build_editor(method, lm.name, **options)


def list_methods(lm: LanguageModel | None = None) -> tuple[MethodRow, ...]:
    """Compare all methods, from their cards; with a model, count the parameters of each."""
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


def list_models() -> Listing:
    """List the models of the package and the architectures understood."""
    from corrigenda.lm.families import FAMILIES

    folder = Path(str(files("corrigenda.pocket")))
    about = {
        "pocket": "Llama-style, trained by this project on facts of its own sentences",
        "pocket-gpt2": "its GPT-2-style twin",
    }
    shipped = tuple(
        Shipped(name, (folder / name / "config.json").is_file(), text)
        for name, text in about.items()
    )
    families = tuple(FamilyRow(row.name, tuple(row.model_types)) for row in FAMILIES)
    return Listing(shipped, families)
