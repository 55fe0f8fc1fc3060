"""Evaluation of a recipe: its runs, and a table of metrics by run."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from corrigenda.errors import BadConfig
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.wrapping import require_lm
from corrigenda.metrics.estimate import Bootstrap
from corrigenda.progress import Progress, show_progress
from corrigenda.reports import content, numbers
from corrigenda.reports.plain import convert_estimate, convert_run
from corrigenda.reports.sections import TableLine
from corrigenda.run import executors, runner, store, summary
from corrigenda.run.spec import Recipe, RunSpec, read_recipe
from corrigenda.run.store import Recorded
from corrigenda.tables import align_table, write_html_table


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Runs of a recipe with their metrics; printed as a table.

    Attributes:
        title: Heading of the table.
        runs: What was recorded, in the order of the recipe.
        lines: Estimates, metric by metric: of the unedited model, and one for each run.
        bootstrap: How intervals were found.
    """

    title: str
    runs: tuple[Recorded, ...]
    lines: tuple[TableLine, ...]
    bootstrap: Bootstrap

    @property
    def problems(self) -> dict[str, dict[str, int]]:
        """Return the reasons for missing answers with their number, by run id."""
        return {run.manifest.run: dict(summary.count_problems(run)) for run in self.runs}

    @property
    def has_errors(self) -> bool:
        """Return whether an edit of any run failed with an error."""
        return any(one.name == "error" for run in self.runs for one in run.measurements)

    def table(self) -> list[tuple[str, ...]]:
        """Return the table as text: a row of heads, then one row for each metric."""
        heads = ("metric", "", "n", "unedited", *(run.spec.editor.title for run in self.runs))
        return [
            heads,
            *(
                (
                    line.metric.name,
                    line.metric.arrow,
                    line.num_cases,
                    numbers.format_cell(line.before, line.metric.scale),
                    *(numbers.format_cell(one, line.metric.scale) for one in line.estimates),
                )
                for line in self.lines
            ),
        ]

    def __repr__(self) -> str:
        """Return the table with its heading and legend."""
        parts = (self.title, align_table(self.table()), numbers.describe_signs(self.bootstrap))
        return "\n".join(filter(None, parts))

    def _repr_html_(self) -> str:
        """Return the table as HTML, for notebooks."""
        table = write_html_table(self.table())
        legend = html.escape(numbers.describe_signs(self.bootstrap))
        return f"<p>{html.escape(self.title)}</p>{table}<p>{legend}</p>"

    def to_json(self) -> dict[str, object]:
        """Return plain dictionaries and lists, as `corrigenda evaluate --json` prints them."""
        return {
            "title": self.title,
            "unedited": {
                line.metric.name: convert_estimate(line.before)
                for line in self.lines
                if line.before is not None
            },
            "runs": [
                {
                    **convert_run(run),
                    "metrics": {
                        line.metric.name: convert_estimate(estimate)
                        for line in self.lines
                        if (estimate := line.estimates[index]) is not None
                    },
                }
                for index, run in enumerate(self.runs)
            ],
        }


def evaluate(
    recipe: str | Path | Recipe | RunSpec | Mapping[str, object] | Sequence[RunSpec],
    *,
    lm: LanguageModel | None = None,
    model: str | None = None,
    limit: int | None = None,
    data: str | Path | None = None,
    folder: str | Path = store.FOLDER,
    executor: str = "local",
    workers: int | None = None,
    chat: bool | None = None,
    placing: Mapping[str, str | None] | None = None,
    progress: Progress | bool | None = None,
) -> Evaluation:
    """Evaluate the methods of a recipe on a benchmark: edit, ask and revert, case by case.

    A run that was interrupted is resumed, and a finished one is only read.

    Args:
        recipe: A recipe by its name, a TOML file, or as a mapping; or one run or several.
        lm: The model, in memory and without patches, asked in this process; loaded as the recipe
            says if None.
        model: Another model than the recipe's.
        limit: Most cases of each benchmark.
        data: Folder of the public files; downloaded if None.
        folder: Where runs are stored.
        executor: Where units run: "local" or "ray".
        workers: Number of workers, with ray.
        chat: Whether to ask in the chat form, where not as the recipe says.
        placing: `dtype`, `device`, `quantization` and `attention`, where not as the recipe says.
        progress: A callback with (stage, done, total), or False for no progress bar.

    Raises:
        CorrigendaError: of model, method, benchmark or disk.

    Example:
        ```python
        result = cg.evaluate("pocket-quick", limit=5)
        specs = [cg.RunSpec(editor=cg.Rome(layer=n), benchmark="pocketedit") for n in range(8)]
        sweep = cg.evaluate(specs, limit=5)
        ```
    """
    found = _as_recipe(recipe)
    data = None if data is None else str(data)
    if lm is not None:
        model = model or require_lm(lm).name
    if isinstance(found, Recipe):
        title, metrics, intervals = found.title, found.metrics, found.intervals
        specs = found.runs(model=model, limit=limit, data=data, chat=chat, placing=placing)
    else:
        specs = tuple(
            run
            for one in found
            for run in _as_single(one).runs(
                model=model, limit=limit, data=data, chat=chat, placing=placing
            )
        )
        title, metrics, intervals = "", specs[0].metrics, specs[0].intervals
    chosen = executors.make_executor(executor, workers=workers) if lm is None else None
    with show_progress(progress) as report:
        runs = runner.run_all(specs, lm=lm, folder=folder, executor=chosen, progress=report)
    bootstrap = intervals.bootstrap()
    lines = content.build_lines(runs, metrics, bootstrap)
    models = [(run.manifest.model_digest, run.spec.benchmark) for run in runs]
    if any(one != models[0] for one in models):
        # There is no one model, or no one set of cases, that the column could be of.
        lines = (line._replace(before=None) for line in lines)
    return Evaluation(title, tuple(runs), tuple(lines), bootstrap)


def _as_recipe(recipe: object) -> Recipe | tuple[RunSpec, ...]:
    match recipe:
        case Recipe():
            return recipe
        case str() | Path():
            return read_recipe(recipe)
        case Mapping():
            return Recipe(**{str(name): value for name, value in recipe.items()})
        case RunSpec():
            return (recipe,)
        case [RunSpec(), *_] if all(isinstance(one, RunSpec) for one in recipe):
            return tuple(recipe)
        case _:
            raise BadConfig(
                f"a recipe or runs were expected, not an object of type {type(recipe).__name__}.",
                hint="Give the name of a recipe, or `cg.RunSpec(editor=..., benchmark=...)`.",
            )


def _as_single(spec: RunSpec) -> Recipe:
    """Return the recipe of one run, so that model, limit and data are set in one place."""
    shared = {name: getattr(spec, name) for name in type(spec).model_fields if name != "editor"}
    return Recipe(methods=(spec.editor,), **shared)
