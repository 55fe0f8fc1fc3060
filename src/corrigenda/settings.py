"""Frozen, validated settings: the base class of editors, transforms and benchmarks."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from corrigenda.errors import BadConfig, did_you_mean

Choice = TypeVar("Choice", bound=StrEnum)


class Settings(BaseModel):
    """A frozen configuration: validated, equal to another when the settings are equal.

    Attributes:
        name: What it is called.
        kind: What messages call its kind.

    Raises:
        BadConfig (CG502): an option it does not have, or a value it cannot take.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    kind: ClassVar[str]

    def __init__(self, **options: object) -> None:
        """Validate the options."""
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise bad_config(type(self), error, where=f"{self.kind} {self.name}") from error


def bad_config(kind: type[BaseModel], error: ValidationError, *, where: str) -> BadConfig:
    """Return the error for options that a configuration cannot take, with all problems."""
    problems, hints = [], []
    for item in error.errors():
        option = ".".join(map(str, item["loc"])) or "options"
        problems.append(f"{option}: {item['msg']}")
        if item["type"] == "extra_forbidden":
            hints.append(did_you_mean(option, list(kind.model_fields)))
    return BadConfig("; ".join(problems) + ".", where=where, hint=" ".join(hints))


def parse_choice(kind: type[Choice], value: str, *, where: str = "") -> Choice:
    """Return the member of an enumeration for its text.

    Raises:
        BadConfig (CG502): no such member.
    """
    try:
        return kind(value)
    except ValueError:
        raise BadConfig(
            f'no {kind.__name__.lower()} "{value}".',
            where=where,
            hint=did_you_mean(str(value), [str(member) for member in kind]),
        ) from None
