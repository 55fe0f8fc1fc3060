"""`corrigenda` alone: in a terminal three things to try, else the help."""

from __future__ import annotations

import shlex
import sys
from typing import NamedTuple

import typer
from rich.text import Text as Line

from corrigenda.cli import output


class FirstTrial(NamedTuple):
    """Something to try.

    Attributes:
        about: What it does.
        arguments: The command.
    """

    about: str
    arguments: tuple[str, ...]


TRIALS = (
    FirstTrial(
        "Ask a small model that is shipped with the package, trained on facts",
        ("ask", "pocket", "The capital of France is", "The capital of Spain is"),
    ),
    FirstTrial(
        "Correct one fact, see what else changed, and measure what must not change",
        ("edit", "pocket", "The capital of France is", "--target", "Rome", "--guard"),
    ),
    FirstTrial(
        "See in which blocks of the model that fact is",
        ("trace", "pocket", "The capital of France is"),
    ),
)
"""Commands that need no file and write none."""


def start(ctx: typer.Context) -> None:
    """Offer the trials in a terminal, and run what is chosen; without one, print the help.

    Raises:
        Exit: always, with the status of what was run.
    """
    if not is_terminal():
        typer.echo(ctx.get_help())
        raise typer.Exit(output.MISUSE)
    console = output.stdout()
    console.print("corrigenda corrects facts in language models. Three things to try:\n")
    for number, one in enumerate(TRIALS, start=1):
        console.print(f"  {number}. {one.about}")
        console.print(Line(f"     {write_command(one)}", style="dim"), soft_wrap=True)
    console.print("\n  corrigenda fix MODEL FILE takes a file of facts, --help lists all commands.")
    chosen = typer.prompt("\nNumber (Enter leaves)", default="", show_default=False).strip()
    if chosen not in {str(number) for number in range(1, len(TRIALS) + 1)}:
        raise typer.Exit
    trial = TRIALS[int(chosen) - 1]
    console.print(Line(f"$ {write_command(trial)}"), soft_wrap=True)
    raise typer.Exit(run_command(ctx, trial))


def is_terminal() -> bool:
    """Return whether a person reads and types."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def run_command(ctx: typer.Context, trial: FirstTrial) -> int:
    """Run a command of the same command line, and return its status."""
    try:
        ctx.command.main(args=list(trial.arguments), prog_name=ctx.info_name)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else output.DEFECT
    return 0


def write_command(trial: FirstTrial) -> str:
    """Return a command as it is typed."""
    return shlex.join(["corrigenda", *trial.arguments])
