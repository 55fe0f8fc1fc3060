"""What `corrigenda fix` asks in a terminal: whether the lines are understood, and what next."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.text import Text as Line

from corrigenda.cli import output
from corrigenda.errors import CorrigendaError
from corrigenda.progress import close_progress

if TYPE_CHECKING:
    from corrigenda.fixing.fix import FixResult
    from corrigenda.fixing.understanding import UnderstoodLine
    from corrigenda.lm.model import LanguageModel

Ask = Callable[[str], str]

MENU = (
    ("ask", "ask both models something"),
    ("show N", "show the answers of line N"),
    ("undo N", "take line N out"),
    ("export", "write a merged model, which runs without this package"),
    ("serve", "how to serve it"),
    ("quit", "leave"),
)


def ask_line(text: str) -> str:
    """Ask for a line of text in the terminal; "" where there is no more."""
    close_progress()
    try:
        return typer.prompt(text, default="", show_default=False)
    except typer.Abort:
        return "quit"


def confirm_lines(
    lm: LanguageModel, understood: Sequence[UnderstoodLine], ask: Ask = ask_line
) -> list[UnderstoodLine]:
    """Show how the lines are understood, and let subjects be corrected.

    Args:
        lm: The model.
        understood: The lines.
        ask: Returns what the user answers: empty to go on, a number and a subject to set it, a
            number and a minus sign to leave a line out.
    """
    from corrigenda.fixing.lines import FactLine
    from corrigenda.fixing.understanding import Fate, understand

    found = list(understood)
    while True:
        rows = [
            (
                one.number,
                one.fact.prompt if one.fact else "",
                f"{one.fact.subject or '?'}{' (found)' if one.guessed else ''}" if one.fact else "",
                one.before,
                one.fact.target if one.fact else "",
                f"{one.fate}: {one.reason}" if one.fate else "to correct",
            )
            for one in found
        ]
        columns = ("line", "prompt", "subject", "says now", "wanted", "")
        output.stdout().print(output.table(columns, rows))
        said = ask("Enter goes on; N SUBJECT sets the subject of line N; N - leaves it out")
        if not said.strip():
            return found
        if said.strip() == "quit":
            raise typer.Exit(output.FINDING)
        number, _, subject = said.strip().partition(" ")
        places = [place for place, one in enumerate(found) if str(one.number) == number]
        if not places or not subject.strip() or found[places[0]].fact is None:
            output.notice(f"There is no line to change in: {said}")
            continue
        place, fact = places[0], found[places[0]].fact
        assert fact is not None, "checked above"
        if subject.strip() == "-":
            found[place] = replace(found[place], fate=Fate.REFUSED, reason="left out by you")
            continue
        try:
            changed = replace(fact, subject=subject.strip(), subject_start=None)
        except CorrigendaError as error:
            output.notice(str(error))
            continue
        (found[place],) = understand(lm, [FactLine(found[place].number, changed)])


def run_menu(
    lm: LanguageModel, model: str, result: FixResult, folder: Path, ask: Ask = ask_line
) -> None:
    """Offer what can be done with the edit until the user leaves.

    Args:
        lm: The model, without the edit.
        model: Its name, for commands.
        result: The fix.
        folder: Where its files are.
        ask: Returns what the user answers.
    """
    console = output.stdout()
    while True:
        console.print(output.table(("", ""), MENU))
        word, _, rest = ask("What next").strip().partition(" ")
        try:
            match word:
                case "quit" | "q" | "":
                    return
                case "ask":
                    _ask_both(lm, result, rest or ask("Prompt"))
                case "show":
                    _show(result, rest)
                case "undo":
                    result = _undo(lm, model, result, folder, rest)
                case "export":
                    _export(lm, result, folder)
                case "serve":
                    file = str(folder / "patch.safetensors")
                    text = shlex.join(["corrigenda", "serve", model, "--patch", file])
                    console.print(Line(text), soft_wrap=True)
                case _:
                    output.notice(f'There is no "{word}".')
        except CorrigendaError as error:
            output.notice(str(error))


def _ask_both(lm: LanguageModel, result: FixResult, prompt: str) -> None:
    import corrigenda

    assert result.patch is not None, "the menu is shown where there is a patch"
    with ExitStack() as active:
        for one in result.below:
            active.enter_context(one.apply(lm))
        before = corrigenda.ask(lm, prompt)
        active.enter_context(result.patch.apply(lm))
        after = corrigenda.ask(lm, prompt)
    rows = [("before", before.continuation), ("after", after.continuation)]
    output.stdout().print(output.table(("", prompt), rows))


def _show(result: FixResult, number: str) -> None:
    line = next((one for one in result.lines if str(one.number) == number.strip()), None)
    found = result.assessment
    if line is None or line.fact is None or found is None or line.fact not in found.facts:
        output.notice(f'Line "{number}" was not edited.')
        return
    place = found.facts.index(line.fact)
    rows = [
        (str(item.role), item.prompt, item.before, item.after)
        for item in found.answers
        if item.fact == place
    ]
    output.stdout().print(output.table(("", "prompt", "before", "after"), rows))


def _undo(lm: LanguageModel, model: str, result: FixResult, folder: Path, number: str) -> FixResult:
    from corrigenda.fixing.card import write_files
    from corrigenda.fixing.undoing import take_out

    changed = take_out(lm, result, int(number) if number.strip().isdecimal() else -1)
    write_files(changed, folder, model=model, source=folder.name)
    output.stdout().print(Line(repr(changed)), soft_wrap=True)
    return changed


def _export(lm: LanguageModel, result: FixResult, folder: Path) -> None:
    import corrigenda

    assert result.patch is not None, "the menu is shown where there is a patch"
    patches = [*result.below, result.patch]
    corrigenda.export(patches, lm, folder / "merged", to="merged")
    output.stdout().print(Line(f"written: {folder / 'merged'}"), soft_wrap=True)
