"""Search spaces: which options of a method are tuned, and between which values.

The space of a method follows from its option fields, by their names: the block or blocks, and every
option of `RANGES` that the method has a value for. Ranges that depend on a scale are relative to
the present value, which is the preset of the model or the default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from annotated_types import Ge, Gt, Le, Lt

if TYPE_CHECKING:
    from optuna import Trial

    from corrigenda.editor import Editor
    from corrigenda.lm.model import LanguageModel

_WIDTHS = (1, 2, 3, 5)
_FIRST, _WIDTH = "first_layer", "num_layers"


class Range(NamedTuple):
    """Values of an option: between two ends, absolute or in multiples of the present value."""

    low: float
    high: float
    relative: bool = True
    log: bool = True


RANGES: Mapping[str, Range] = {
    # Locate-then-edit: length of the vector, its price, price of disturbing old keys.
    "clamp": Range(0.1, 4),
    "weight_decay": Range(1 / 500, 2),
    "weight": Range(1 / 1000, 4),
    "gamma": Range(1e-3, 1e3),
    "energy": Range(0.005, 0.5, relative=False),
    "ridge": Range(0.01, 100),
    # Training: how long, how fast, how much.
    "steps": Range(0.4, 1.6, log=False),
    "epochs": Range(0.2, 2, log=False),
    "learning_rate": Range(1 / 30, 30),
    "rank": Range(0.125, 2),
    # Memories: scope of an edit.
    "radius": Range(0.05, 20),
    "act_ratio": Range(0.3, 0.98, relative=False, log=False),
    "mask_ratio": Range(0.1, 0.6, relative=False, log=False),
    # Knowledge neurons: how many, how strongly.
    "threshold": Range(0.05, 0.6, relative=False, log=False),
    "share": Range(0.3, 1, relative=False, log=False),
    "new_weight": Range(0.2, 5),
}
"""Ranges of options by name. In a target search the learning rate varies less, see `_range_of`."""

_SEARCH_RATE = Range(0.2, 1.2)


class Dimension(NamedTuple):
    """One parameter of the search.

    Attributes:
        name: Name of the option, or of a parameter that layers are made from.
        low: Least value.
        high: Largest value.
        log: Whether it is drawn on a logarithmic scale.
        integer: Whether it is a whole number.
        choices: All values, where it has no range.
        present: Value of the present options.
    """

    name: str
    low: float
    high: float
    log: bool
    integer: bool
    choices: tuple[int, ...]
    present: float

    def suggest(self, trial: Trial) -> float:
        """Draw a value."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if self.integer:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)


def list_dimensions(lm: LanguageModel, present: Editor) -> list[Dimension]:
    """Return the search space of a method on a model.

    Args:
        lm: The model.
        present: The editor with its present options, which are within every range.
    """
    found = [*_list_layer_dimensions(lm, present)]
    for name, field in type(present).model_fields.items():
        value = getattr(present, name)
        if name not in RANGES or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if value <= 0:
            continue
        chosen = _range_of(present, name)
        scale = float(value) if chosen.relative else 1.0
        low, high = _clip(field.metadata, chosen.low * scale, chosen.high * scale)
        low, high = min(low, value), max(high, value)
        integer = isinstance(value, int)
        if integer:
            low, high = max(1, round(low)), round(high)
        found.append(Dimension(name, low, high, chosen.log, integer, (), value))
    return found


def _range_of(editor: Editor, name: str) -> Range:
    # Options of the target search are those of `LocateThenEdit`, among them this price.
    searches = "kl_weight" in type(editor).model_fields
    return _SEARCH_RATE if searches and name == "learning_rate" else RANGES[name]


def _list_layer_dimensions(lm: LanguageModel, present: Editor) -> list[Dimension]:
    """Return the place of the first block, and for methods of several the number of blocks."""
    layers = find_layers(lm, present)
    fields = type(present).model_fields
    if not layers or not {"layer", "layers"} & set(fields):
        return []
    last = lm.num_layers - 1
    first = Dimension(_FIRST, 0, last, False, True, (), min(layers))
    if "layer" in fields:
        return [first]
    width = max(layers) - min(layers) + 1
    widths = tuple(sorted({*(one for one in _WIDTHS if one <= lm.num_layers), width}))
    return [first, Dimension(_WIDTH, 0, 0, False, True, widths, width)]


def find_layers(lm: LanguageModel, editor: Editor) -> tuple[int, ...]:
    """Return the blocks that an editor changes on a model, in ascending order."""
    own = getattr(editor, "layer", None)
    if own is not None:
        return (own,)
    return tuple(sorted({site.layer for site in editor.sites(lm)}))


def build_options(
    lm: LanguageModel, present: Editor, parameters: Mapping[str, float]
) -> dict[str, object]:
    """Return the options of a method for a point of the search space.

    Options that are not searched are those of the present editor, as far as they are not defaults.

    Args:
        lm: The model.
        present: The editor with its present options.
        parameters: Value of each dimension, by its name.
    """
    options: dict[str, object] = present.model_dump(mode="json", exclude_defaults=True)
    options |= {name: value for name, value in parameters.items() if name in RANGES}
    if _FIRST not in parameters:
        return options
    first, width = int(parameters[_FIRST]), int(parameters.get(_WIDTH, 1))
    last = min(first + width, lm.num_layers)
    layers = [*range(max(0, last - width), last)]
    if "layer" in type(present).model_fields:
        options["layer"] = first
    elif isinstance(parts := getattr(present, "layers", None), dict):
        options["layers"] = {part: layers for part in parts}
    else:
        options["layers"] = layers
    return options


def present_parameters(dimensions: Sequence[Dimension]) -> dict[str, float]:
    """Return the point of the search space at which the present options are."""
    return {one.name: one.present for one in dimensions}


def _clip(metadata: Sequence[object], low: float, high: float) -> tuple[float, float]:
    """Return a range inside the limits that the option itself has."""
    for limit in metadata:
        match limit:
            case Ge(ge=float() | int() as least):
                low = max(low, float(least))
            case Gt(gt=float() | int() as least):
                low = max(low, float(least) + 1e-6)
            case Le(le=float() | int() as most):
                high = min(high, float(most))
            case Lt(lt=float() | int() as most):
                high = min(high, float(most) - 1e-6)
            case _:
                pass
    return low, high
