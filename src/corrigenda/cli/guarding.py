"""The guard in commands: run where it is asked for, and shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text as Line

from corrigenda.cli import output
from corrigenda.errors import BadConfig

if TYPE_CHECKING:
    from corrigenda.facts import Fact
    from corrigenda.guarding.guard import GuardReport
    from corrigenda.lm.model import LanguageModel
    from corrigenda.patch import Patch

_COLOURS = {"free": "green", "costly": "yellow", "refused": "red"}


def check_options(guard: bool, limits: Sequence[str] | None, tasks: Sequence[str] | None) -> None:
    """Refuse options of the guard without it, and limits that are none, before any work.

    Raises:
        BadConfig (CG502): such options.
    """
    from corrigenda.guarding.limits import parse_limits, set_limits

    if not guard and (limits or tasks):
        raise BadConfig("--limit and --task are of the guard.", hint="Add --guard.")
    set_limits(parse_limits(limits or ()))


def run_guard(
    lm: LanguageModel,
    patch: Patch,
    facts: Sequence[Fact],
    limits: Sequence[str] | None,
    tasks: Sequence[str] | None,
    chat: bool | None,
) -> GuardReport:
    """Return the report of the guard with the options of a command."""
    import corrigenda
    from corrigenda.guarding.limits import parse_limits

    return corrigenda.guard(
        lm, patch, facts, limits=parse_limits(limits or ()), tasks=tasks or (), chat=chat
    )


def draw_report(console: Console, report: GuardReport) -> None:
    """Print the verdict, the damage by every measure, and the facts that cause it."""
    verdict = str(report.verdict)
    console.print(
        Line.assemble("guard: ", (verdict, _COLOURS[verdict]), f": {report.reason}"),
        soft_wrap=True,
    )
    rows = report.rows()
    if rows:
        console.print(output.table(("", "damage", "interval", "free up to", "n"), rows))
    for text, damage in report.list_causes():
        console.print(Line(f"  {damage:.3g} without: {text}"), soft_wrap=True)
    for one in report.notices:
        output.notice(one)
