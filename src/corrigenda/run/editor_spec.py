"""Method of a run: by its name with options, or an editor object; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PrivateAttr

from corrigenda.methods import presets
from corrigenda.methods.registry import METHODS
from corrigenda.settings import Settings

if TYPE_CHECKING:
    from corrigenda.editor import Editor

Options = dict[str, JsonValue]
"""Options of a method or a benchmark, as TOML gives them."""


class Table(BaseModel):
    """A frozen table of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EditorSpec(Table):
    """A method with its options.

    Attributes:
        name: Name of the method.
        options: Options on top of the preset for the model.
        transforms: Transforms of its patches, as `--transform` takes them.
        label: Its name in tables; made of name and transforms where empty.
    """

    name: str
    options: Options = Field(default_factory=dict)
    transforms: tuple[str, ...] = ()
    label: str = ""
    _editor: Editor | None = PrivateAttr(default=None)

    @classmethod
    def from_editor(
        cls, editor: Editor, *, transforms: Sequence[str] = (), label: str = ""
    ) -> EditorSpec:
        """Return the table of an editor object, which is taken as it is, without a preset.

        Args:
            editor: The object, such as `cg.Rome(layer=5)`, also of a class that is not registered.
            transforms: Transforms of its patches.
            label: Its name in tables.

        Example:
            >>> from corrigenda.methods.rome.editor import Rome
            >>> EditorSpec.from_editor(Rome(layer=5)).options
            {'layer': 5}
        """
        options = editor.model_dump(mode="json", exclude_unset=True)
        made = cls(name=editor.name, options=options, transforms=tuple(transforms), label=label)
        made._editor = editor
        return made

    @property
    def title(self) -> str:
        """Its name in tables."""
        return self.label or "+".join([self.variant, *self.transforms])

    @property
    def variant(self) -> str:
        """Name of the method, with the variant that its options make of it."""
        if self.name not in METHODS.names():
            return self.name
        return presets.variant_label(self.name, self.options)

    @property
    def plug_in(self) -> str:
        """Class of an editor object that no registered name gives; empty for all others."""
        kind = type(self._editor)
        if self._editor is None or _is_registered(kind, self.name):
            return ""
        return f"{kind.__module__}:{kind.__qualname__}"

    def resolve(self, model: str) -> EditorSpec:
        """Return the table of the same editor by name, for a model.

        Options that the preset for the model would change are set to those of the editor object.
        An object of a class that is not registered has no such table, and is kept.
        """
        if self._editor is None or self.plug_in:
            return self
        whole = self._editor.model_dump(mode="json")
        preset = presets.preset(self.name, model)
        more = {name: whole[name] for name in (preset.options if preset else ())}
        return EditorSpec(
            name=self.name,
            options={**more, **self.options},
            transforms=self.transforms,
            label=self.label,
        )

    def build(self, model: str, seed: int) -> Editor:
        """Return the editor: the preset for a model, with the options on top.

        Args:
            model: Name of the model.
            seed: Value of an option `seed` that neither preset nor options set.

        Raises:
            UnknownMethod (CG501): no such method.
            BadConfig (CG502): an option it does not have, or a value it cannot take.
        """
        if self._editor is not None and self.plug_in:
            return self._editor
        kind = METHODS.get(self.name)
        options = presets.complete_options(self.name, model, self.options)
        if "seed" in kind.model_fields and "seed" not in options:
            options["seed"] = seed
        return kind(**options)


def is_editor(value: object) -> TypeGuard[Editor]:
    """Return whether a value is an editor object."""
    return isinstance(value, Settings) and value.kind == "method"


def _is_registered(kind: type[object], name: str) -> bool:
    return name in METHODS.names() and METHODS.get(name) is kind
