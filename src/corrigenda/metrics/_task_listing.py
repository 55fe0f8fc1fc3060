"""The registry's table, third part: other tasks, all together and each by its name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from corrigenda.metrics import collapse, generated, tasks
from corrigenda.metrics._entry import DIFFERENCE, HIGHER, LOWER, PERCENT, POSITIVE, entry
from corrigenda.metrics.registry import Metric, Records
from corrigenda.rows import Row

_LEGACY = "legacy_"
_LOWER = ("perplexity", "bits_per_byte", "brier_score")


def all_tasks() -> Iterator[Metric]:
    """Means over the tasks of a run."""
    yield from _asked("")
    yield from _generated("")
    yield entry(
        "task_retention",
        "share of the harness's scores on other tasks that is kept",
        collapse.mean_task_retention,
        reads=tasks.FAMILY,
        span=POSITIVE,
    )


def of_tasks(records: Records) -> Iterator[Metric]:
    """Metrics of each task that was asked or measured."""
    for task in _names(records.rows):
        yield from _asked(task)
        yield from _generated(task)
    for task in collapse.tasks(records.measurements):
        yield from _measured(task)


def named(name: str) -> Metric | None:
    """The metric of one task by its name, such as `task_accuracy/rte@rank`; None if it is none."""
    what, _, rest = name.partition("/")
    task = rest.partition("@")[0]
    if not task or not what.removeprefix(_LEGACY).startswith(tasks.FAMILY):
        return None
    known = [*_asked(task), *_generated(task)] if "@" in rest else [*_measured(task)]
    return next((one for one in known if one.name == name), None)


def _names(rows: Sequence[Row]) -> list[str]:
    return sorted({row.kind for row in rows if row.family == tasks.FAMILY})


def _asked(task: str) -> Iterator[Metric]:
    """Metrics of choices that were compared."""
    end, title, reads = _of(task)
    for measure in tasks.MEASURES:
        yield entry(
            f"task_{measure}{end}@rank",
            f"{measure} {title}",
            tasks.task_score,
            task,
            reads=reads,
            span=DIFFERENCE if measure == "correlation" else (0.0, 1.0),
            options={"measure": measure},
        )
    yield entry(
        f"task_accuracy{end}@rank:sum",
        f"accuracy {title}, whole choices compared",
        tasks.task_score,
        task,
        reads=reads,
        options={"normalization": "sum"},
    )
    yield entry(
        f"task_change{end}@rank",
        f"accuracy {title} less that before",
        tasks.task_change,
        task,
        reads=reads,
        span=DIFFERENCE,
    )
    yield entry(
        f"task_retention{end}@rank",
        f"accuracy {title} over that before",
        tasks.task_retention,
        task,
        reads=reads,
        span=POSITIVE,
    )


def _generated(task: str) -> Iterator[Metric]:
    """Metrics of answers that were generated; published ways of judging are legacy."""
    end, title, reads = _of(task)
    for legacy in (False, True):
        for measure in ("score", "f1", "correlation"):
            # The published search for spans counts some texts several times.
            most = None if legacy and measure == "score" else 1.0
            yield entry(
                f"{_LEGACY if legacy else ''}task_{measure}{end}@greedy",
                f"{measure} of generated answers {title}" + (", as published" if legacy else ""),
                generated.generated_score,
                task,
                reads=reads,
                span=DIFFERENCE if measure == "correlation" else (0.0, most),
                legacy=legacy,
                options={"measure": measure, "legacy": legacy},
            )
    yield entry(
        f"task_change{end}@greedy",
        f"score of generated answers {title} less that before",
        generated.generated_change,
        task,
        reads=reads,
        span=DIFFERENCE,
    )
    yield entry(
        f"task_retention{end}@greedy",
        f"score of generated answers {title} over that before",
        generated.generated_retention,
        task,
        reads=reads,
        span=POSITIVE,
    )


def _of(task: str) -> tuple[str, str, str]:
    """End of the names, of the titles, and what is read."""
    if not task:
        return "", "on other tasks", tasks.FAMILY
    return f"/{task}", f"on {task}", f"{tasks.FAMILY}/{task}"


def _measured(task: str) -> Iterator[Metric]:
    """Metrics of measurements, which the harness made."""
    reads = f"{tasks.FAMILY}/{task}"
    lower = task.endswith(_LOWER)
    better, scale = (LOWER, 1.0) if lower else (HIGHER, PERCENT)
    for what, function in (
        ("task", collapse.last_task_score),
        ("task_change", collapse.last_task_change),
        ("task_retention", collapse.last_task_retention),
    ):
        yield entry(
            f"{what}/{task}",
            {"task": "score", "task_change": "change", "task_retention": "retention"}[what]
            + f" on {task}",
            function,
            task,
            reads=reads,
            better=better,
            span=(None, None),
            scale=PERCENT if what == "task_retention" else scale,
        )
