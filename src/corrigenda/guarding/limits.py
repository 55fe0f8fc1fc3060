"""Limits of the guard: what counts as free, and beyond what an edit is refused. One table.

No threshold is agreed on in the field, so each of these has its reason beside it, and each is an
option.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from corrigenda.errors import BadConfig, did_you_mean
from corrigenda.settings import parse_choice


class Measure(StrEnum):
    """Measures of damage; each is a number that is 0 where nothing changed, and grows."""

    SAME_RELATION = "same relation"
    """Share of known facts lost: the relations of the edited facts, other subjects."""
    OTHER_RELATIONS = "other relations"
    """Share of known facts lost: other relations, other subjects."""
    SAME_SUBJECT = "same subject"
    """Share of known facts lost: other facts of the edited subjects."""
    DIVERGENCE = "first token"
    """KL(unedited || edited) of the first token after ordinary prompts, in nats."""
    PERPLEXITY = "perplexity"
    """Perplexity of ordinary text over that of the unedited model, minus 1."""
    NORM = "norm growth"
    """Largest growth of the Frobenius norm of a weight, relative to the norm before."""
    TASKS = "tasks"
    """Score lost in tasks of lm-eval, item by item."""


class Limit(NamedTuple):
    """Limits of one measure.

    Attributes:
        free: Damage up to here is free: an edit is costly where the whole interval is above it.
        refused: An edit whose damage is above this is refused; infinite where it never is.
        reason: Why these numbers.
    """

    free: float
    refused: float
    reason: str


LIMITS: Mapping[Measure, Limit] = {
    Measure.SAME_RELATION: Limit(
        0.05,
        0.50,
        "facts of one relation share their wording, so an edit reaches them first; where half of "
        "them are lost, the model has been taught one answer for all",
    ),
    Measure.OTHER_RELATIONS: Limit(
        0.02,
        0.20,
        "what has nothing to do with the edit should stay: one in fifty is what rewording a "
        "prompt costs too, one in five is another model",
    ),
    Measure.SAME_SUBJECT: Limit(
        0.05,
        math.inf,
        "changes of weights lose other facts of their subject, all methods of this kind do: it is "
        "a cost to be told of, and no sign of a broken model",
    ),
    Measure.DIVERGENCE: Limit(
        0.02,
        0.50,
        "rounding weights to 8 bits costs less than a hundredth of a nat and to 4 bits about a "
        "tenth, which people accept; half a nat changes the first word of many answers",
    ),
    Measure.PERPLEXITY: Limit(
        0.02,
        0.25,
        "a fiftieth is what 8 bits cost at most, a tenth what 4 bits cost a small model; more than "
        "twice that is another model",
    ),
    Measure.NORM: Limit(
        1.00,
        4.00,
        "edits in a row fail where norms have grown to a multiple of what they were, of which "
        "twice is the first; a single edit of a small model adds up to two fifths",
    ),
    Measure.TASKS: Limit(
        0.02,
        0.20,
        "as for other relations",
    ),
}
"""The table. `limits` of `cg.guard` and `--limit` of the commands change single numbers."""


def set_limits(given: Mapping[str, Sequence[float]] | None) -> dict[Measure, Limit]:
    """Return the table with some limits replaced.

    Args:
        given: By name of the measure, the largest free value and the largest that is not refused;
            `inf` never refuses.

    Raises:
        BadConfig (CG502): no such measure, or numbers that are no limits.

    Example:
        >>> set_limits({"perplexity": (0.1, 0.2)})[Measure.PERPLEXITY].refused
        0.2
    """
    table = dict(LIMITS)
    for name, numbers in (given or {}).items():
        measure = parse_choice(Measure, name)
        pair = [float(one) for one in numbers]
        if len(pair) != 2 or not 0 <= pair[0] <= pair[1]:
            raise BadConfig(
                f"the limits of {measure} are {', '.join(f'{one:g}' for one in pair)}.",
                where="guard",
                hint="Give two numbers: the largest free value, and the largest not refused.",
            )
        table[measure] = Limit(pair[0], pair[1], "given")
    return table


def parse_limits(entries: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Return limits from texts such as "perplexity=0.05,0.5".

    Raises:
        BadConfig (CG502): a text of another form.

    Example:
        >>> parse_limits(["norm growth=0.2,inf"])
        {'norm growth': (0.2, inf)}
    """
    found: dict[str, tuple[float, ...]] = {}
    for entry in entries:
        name, _, numbers = entry.partition("=")
        try:
            found[name.strip()] = tuple(float(one) for one in numbers.split(","))
        except ValueError as error:
            raise BadConfig(
                f'"{entry}" is not MEASURE=FREE,REFUSED.',
                where="--limit",
                hint=did_you_mean(name.strip(), [str(one) for one in Measure]),
            ) from error
    return found
