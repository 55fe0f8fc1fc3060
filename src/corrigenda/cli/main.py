"""The command `corrigenda`: its groups, its exit status, and the report of errors.

Exit status: 0 done, 1 a finding (an edit without success, patches that differ), 2 misuse, 70 a
defect of this library.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from typing import Annotated

import typer
from typer.core import TyperGroup

from corrigenda.cli import (
    ask,
    assess,
    benchmarks,
    book,
    cache,
    doctor,
    edit,
    evaluate,
    exam,
    export,
    first_run,
    fit,
    fix,
    listing,
    neurons,
    options,
    output,
    patches,
    plan,
    pocket,
    report,
    serve,
    trace,
    tune,
)
from corrigenda.errors import CorrigendaError, NoCases
from corrigenda.progress import show_progress

_ARGUMENTS = "corrigenda.arguments"


class Commands(TyperGroup):
    """Commands whose coded errors are reported in one place and end with status 2 (CG607: 1)."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]  # same class by another name
        """Run the command given; warnings become notices on stderr."""
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: output.notice(str(message))
            try:
                options.check_arguments(ctx.meta[_ARGUMENTS])
                with show_progress(None):
                    return super().invoke(ctx)
            except CorrigendaError as error:
                output.report(error, ctx)
                empty = isinstance(error, NoCases)
                raise typer.Exit(output.FINDING if empty else output.MISUSE) from error

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # as above
        """Note the arguments, so that `invoke` can check them where errors are reported."""
        ctx.meta[_ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]  # as above
        """Keep the order in which commands are declared."""
        return list(self.commands)


app = typer.Typer(
    name="corrigenda",
    cls=Commands,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Correct facts in language models: see what changed and what did not, undo it, save it.",
    epilog="Start with: corrigenda models; corrigenda methods; corrigenda edit --help",
)
for command in (
    edit.edit,
    fix.fix,
    assess.assess,
    ask.ask,
    fit.fit,
    listing.methods,
    listing.models,
    benchmarks.benchmarks,
    evaluate.evaluate,
    exam.exam,
    tune.tune,
    plan.plan,
    report.report,
    report.compare,
    patches.diff,
    patches.compose,
    patches.transform,
    export.export,
    export.restore,
    serve.serve,
    trace.trace,
    neurons.neurons,
    doctor.doctor,
):
    app.command()(command)
app.add_typer(book.app, name="book")
app.add_typer(cache.app, name="cache")
app.add_typer(pocket.app, name="pocket")


def _version(value: bool) -> None:
    if value:
        import corrigenda

        typer.echo(corrigenda.__version__)
        raise typer.Exit


@app.callback()
def _options(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        first_run.start(ctx)


def run() -> None:
    """Run the command line and leave with its status."""
    try:
        app()
    except Exception:
        traceback.print_exc()
        sys.exit(output.DEFECT)
