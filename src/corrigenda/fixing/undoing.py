"""One correction of several taken out of an edit, exactly."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from corrigenda.errors import BadConfig
from corrigenda.fixing.fix import FixResult
from corrigenda.fixing.search import EditMaker
from corrigenda.fixing.understanding import Fate

if TYPE_CHECKING:
    from corrigenda.lm.model import LanguageModel


def take_out(lm: LanguageModel, result: FixResult, number: int) -> FixResult:
    """Return the fix without one line: all other facts are edited anew, and asked again.

    The guard is not run again; its report is that of the whole edit, which held more facts.

    Args:
        lm: The model, without the edit.
        result: The fix.
        number: Number of the line.

    Raises:
        BadConfig (CG502): that line was not corrected.
    """
    line = next((one for one in result.lines if one.number == number), None)
    if line is None or line.fact is None or line.fate is not Fate.CORRECTED:
        known = [str(one.number) for one in result.lines if one.fate is Fate.CORRECTED]
        raise BadConfig(f"line {number} was not corrected.", hint=f"Lines: {', '.join(known)}.")
    assert result.approach is not None, "something was corrected"
    left = [fact for fact in result.facts if fact is not line.fact]
    lines = tuple(
        replace(one, fate=Fate.REFUSED, reason="taken out", after="") if one is line else one
        for one in result.lines
    )
    if not left:
        return replace(result, lines=lines, patch=None, parts=(), owners=(), assessment=None)
    maker = EditMaker(lm, result.below)
    patch = maker.make(result.approach.build(lm), left)
    found = maker.measure([patch], left)
    return replace(
        result,
        lines=lines,
        patch=patch,
        parts=(patch,),
        owners=(tuple(left),),
        assessment=found,
    )
