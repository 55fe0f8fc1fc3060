"""Editors and benchmarks given as objects or names, turned into the tables of a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from pydantic import BaseModel

from corrigenda.run.editor_spec import EditorSpec, is_editor
from corrigenda.settings import Settings


def as_table(value: object) -> object:
    """Return the table of a name, or of a benchmark object; else the value itself.

    An object sets every option.
    """
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Settings):
        return {"name": value.name, "options": value.model_dump(mode="json")}
    return value


def as_editor(value: object) -> object:
    """Return the table of the name of a method or of an editor object; else the value itself."""
    return EditorSpec.from_editor(value) if is_editor(value) else as_table(value)


def as_labelled_editor(value: object) -> object:
    """Return the table of an editor; an object is labelled with the options it was given."""
    if not is_editor(value):
        return as_table(value)
    given = [f"{name}={getattr(value, name)}" for name in sorted(value.model_fields_set)]
    label = f"{value.name}({', '.join(given)})" if given else value.name
    return EditorSpec.from_editor(value, label=label)


def as_tables(value: object) -> object:
    """Return the tables of one benchmark or several; what cannot be iterated over as it is."""
    if isinstance(value, str | Mapping | BaseModel):
        return [as_table(cast("object", value))]
    if not isinstance(value, Iterable):
        return value
    return [as_table(one) for one in cast("Iterable[object]", value)]
