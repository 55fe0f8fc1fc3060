"""`corrigenda bench`: run a recipe, and show its methods side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from corrigenda.cli import options, output

if TYPE_CHECKING:
    from corrigenda.metrics.estimate import Estimate
    from corrigenda.run.spec import Recipe
    from corrigenda.run.store import Recorded
    from corrigenda.run.summary import Line


def bench(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe by its name, or a TOML file.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", help="Another model than the recipe's.")
    ] = None,
    executor: Annotated[
        str, typer.Option("--executor", help="Who does the work: local, or ray.")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Number of workers, with ray.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where runs are kept.")
    ] = Path("runs"),
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Most cases of each benchmark.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Evaluate the methods of a recipe: edit, ask, take off, case by case.

    A run that was interrupted goes on, and one that is finished is only read. Every answer is a row
    in FOLDER/RUN/rows.parquet. Exit status 1 means that some edits failed.
    """
    from corrigenda.run.spec import read_recipe

    wanted = read_recipe(recipe)
    specs = wanted.runs(model=model, limit=limit)
    from corrigenda.cli.progress import bar
    from corrigenda.run import executors, runner, summary

    chosen = executors.executor(executor, workers=workers)
    with bar() as progress:
        runs = runner.run_all(specs, folder=out, executor=chosen, progress=progress)
    lines = summary.lines(runs, wanted.metrics)
    failed = {run.manifest.run: dict(summary.problems(run)) for run in runs}
    output.show(
        {
            "recipe": recipe,
            "title": wanted.title,
            "runs": [_run_as_data(run, lines, index) for index, run in enumerate(runs)],
        },
        as_json=as_json,
        people=lambda console: _draw(console, wanted, runs, lines),
    )
    for run in runs:
        for reason, number in failed[run.manifest.run].items():
            output.notice(f"{run.spec.editor.title}: {number} x {reason}")
    if any(one.name == "error" for run in runs for one in run.measurements):
        raise typer.Exit(output.FINDING)


def _draw(
    console: Console, recipe: Recipe, runs: Sequence[Recorded], lines: Sequence[Line]
) -> None:
    columns = ["metric", "", "n", *(run.spec.editor.title for run in runs)]
    rows = [
        [
            one.metric.name,
            one.metric.arrow,
            _numbers(one.estimates),
            *(_cell(estimate, one.metric.scale) for estimate in one.estimates),
        ]
        for one in lines
    ]
    console.print(output.table(columns, rows, title=recipe.title))
    console.print(
        "\n^ higher is better, v lower, = as before. In brackets: 95 % interval over cases."
    )
    for run in runs:
        console.print(f"{run.spec.editor.title}: {run.folder}", soft_wrap=True)


def _numbers(estimates: Sequence[Estimate | None]) -> str:
    """Number of cases; the least and the most where methods differ."""
    found = sorted({one.n for one in estimates if one is not None})
    return "-".join(str(one) for one in dict.fromkeys((found[0], found[-1]))) if found else "0"


def _cell(estimate: Estimate | None, scale: float) -> str:
    if estimate is None or math.isnan(estimate.value):
        return "-"
    value = _number(estimate.value * scale)
    if math.isnan(estimate.low):
        return value
    return f"{value} [{_number(estimate.low * scale)}, {_number(estimate.high * scale)}]"


def _number(value: float) -> str:
    """Three digits or so.

    Example:
        >>> [_number(one) for one in (97.333, 100.0, 0.01234, 12345.6)]
        ['97.3', '100', '0.0123', '12346']
    """
    size = abs(value)
    if size >= 1000 or value == round(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.3g}"


def _run_as_data(run: Recorded, lines: Sequence[Line], index: int) -> dict[str, object]:
    manifest = run.manifest
    return {
        "run": manifest.run,
        "folder": str(run.folder),
        "method": run.spec.editor.name,
        "label": run.spec.editor.title,
        "model": manifest.model,
        "model_digest": manifest.model_digest,
        "config": dict(manifest.config),
        "cases": manifest.cases,
        "rows": len(run.rows),
        "metrics": {
            one.metric.name: _estimate_as_data(estimate)
            for one in lines
            if (estimate := one.estimates[index]) is not None
        },
    }


def _estimate_as_data(estimate: Estimate) -> dict[str, object]:
    def plain(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "value": plain(estimate.value),
        "low": plain(estimate.low),
        "high": plain(estimate.high),
        "n": estimate.n,
        "items": estimate.items,
        "skipped": dict(estimate.skipped),
    }
