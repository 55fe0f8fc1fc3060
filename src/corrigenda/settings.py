"""Frozen, validated settings: the base class of editors, transforms and benchmarks."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from enum import StrEnum
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from corrigenda.errors import BadConfig, did_you_mean

Choice = TypeVar("Choice", bound=StrEnum)
Group = TypeVar("Group")

LARGEST_FLOAT = 1e30
"""Largest number of an option: float32 ends at 3e38, and optimisers multiply and divide."""
LARGEST_INTEGER = 2**63 - 1
"""Largest whole number of a tensor, and of a seed."""


class Settings(BaseModel):
    """A frozen configuration: validated, equal to another when the settings are equal.

    Numbers must be finite and fit into the types that models compute in: floats into float32, whole
    numbers, including seeds, into 64 bits.

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

    @field_validator("*")
    @classmethod
    def _fits_numbers(cls, value: object) -> object:
        check_numbers(value)
        return value


def check_numbers(value: object) -> None:
    """Check that all numbers in a value, also in lists and tables, can be computed with.

    Raises:
        ValueError: a number is infinite, NaN, or too large for its type.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no finite number")
    if isinstance(value, float) and abs(value) > LARGEST_FLOAT:
        raise ValueError(
            f"{value:.3g} is beyond {LARGEST_FLOAT:g}, the largest number of an option"
        )
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise ValueError("whole numbers must be below 2**63")
    if isinstance(value, dict):
        for item in (*value, *value.values()):
            check_numbers(item)
    if isinstance(value, list | tuple | set | frozenset):
        for item in value:
            check_numbers(item)


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
    """Return the error for options that a configuration cannot take, with all problems."""
    problems, hints = [], []
    for item in error.errors():
        option = ".".join(map(str, item["loc"])) or "options"
        problems.append(f"{option}: {item['msg'].removeprefix('Value error, ')}")
        if item["type"] == "extra_forbidden":
            hints.append(closest_option(option, list(kind.model_fields)))
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


def closest_option(given: str, options: list[str]) -> str:
    """Return a hint that names the option meant: by its initials, by one of its words, or close.

    Example:
        >>> closest_option("lr", ["layer", "learning_rate"])
        'Did you mean "learning_rate"?'
    """
    plain = given.lower().replace("-", "_")
    words = {one: one.split("_") for one in options}
    by_initials = [one for one in options if "".join(word[0] for word in words[one]) == plain]
    by_word = [one for one in options if plain in words[one]]
    for found in (by_initials, by_word):
        if len(found) == 1:
            return f'Did you mean "{found[0]}"?'
    return did_you_mean(plain, options)
