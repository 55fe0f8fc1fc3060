"""Frozen, validated settings: what editors, transforms and benchmarks have in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from corrigenda.errors import BadConfig, did_you_mean

Group = TypeVar("Group")


class Settings(BaseModel):
    """A frozen configuration: validated, equal to another when the settings are equal.

    Attributes:
        name: What it is called.
        kind: What messages call its kind.

    Raises:
        BadConfig (CG502): an option it does not have, or a value it cannot take.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    kind: ClassVar[str]

    def __init__(self, **options: object) -> None:
        """Validate the options."""
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise bad_config(type(self), error, where=f"{self.kind} {self.name}") from error


def select(group: Callable[..., Group], options: object) -> Group:
    """Collect a group of options: the values of those of its fields that an object has.

    A value may be an option, or a class attribute or property where a class fixes it. Fields that
    the object does not have take their defaults.

    Args:
        group: A named tuple or dataclass.
        options: The object, such as an editor.
    """
    names = inspect.signature(group).parameters
    return group(**{name: getattr(options, name) for name in names if hasattr(options, name)})


def bad_config(kind: type[BaseModel], error: ValidationError, *, where: str) -> BadConfig:
    """The error for options that do not fit a configuration, all problems in one message."""
    problems, hints = [], []
    for item in error.errors():
        option = ".".join(map(str, item["loc"])) or "options"
        problems.append(f"{option}: {item['msg']}")
        if item["type"] == "extra_forbidden":
            hints.append(did_you_mean(option, list(kind.model_fields)))
    return BadConfig("; ".join(problems) + ".", where=where, hint=" ".join(hints))
