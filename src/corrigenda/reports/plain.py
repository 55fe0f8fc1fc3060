"""The tables of a report as Markdown, LaTeX and JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence

from corrigenda.methods.presets import variant_label
from corrigenda.metrics.estimate import Estimate
from corrigenda.reports.content import Group, Report, TableLine
from corrigenda.reports.numbers import cell, interval, legend, value
from corrigenda.run.store import Recorded

_LATEX = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}
_ARROWS = {"^": r"$\uparrow$", "v": r"$\downarrow$", "=": r"$=$"}


def markdown(report: Report) -> str:
    """All groups as Markdown: table, problems, environment; then what to cite."""
    parts = [f"# {report.title}", f"{legend(report.bootstrap)} The best of a line is bold."]
    for group in report.groups:
        parts.append(f"## {group.title}")
        parts.append(_metric_table(group.lines, _names(group), group.labels))
        for part in group.parts:
            parts += [f"### {part.title}", _metric_table(part.lines, part.names, group.labels)]
        parts += [f"- {label}: {count} x {reason}" for label, reason, count in group.problems]
        parts.append(_markdown_table(("run", "method", "id", "model"), _runs(group)))
    parts += ["## References", "```bibtex", *(one.bibtex for one in report.citations), "```"]
    return "\n\n".join(parts) + "\n"


def latex(report: Report) -> str:
    """One `table` for each group and each of its parts, for a document that loads `booktabs`."""
    tables: list[str] = []
    for group in report.groups:
        tables.append(_latex_table(group.title, group.lines, _names(group), group.labels))
        tables += [
            _latex_table(f"{group.title}: {part.title}", part.lines, part.names, group.labels)
            for part in group.parts
        ]
    return "\n\n".join(tables) + "\n"


def as_data(report: Report) -> dict[str, object]:
    """Plain dictionaries and lists; numbers unscaled."""
    return {
        "title": report.title,
        "intervals": report.bootstrap._asdict(),
        "groups": [_group_as_data(group) for group in report.groups],
        "citations": [{**one._asdict(), "bibtex": one.bibtex} for one in report.citations],
    }


def as_json(report: Report) -> str:
    """`as_data` as text."""
    return json.dumps(as_data(report), indent=2, ensure_ascii=False) + "\n"


def estimate_as_data(estimate: Estimate | None) -> dict[str, object] | None:
    """An estimate in plain values; what is not finite is null."""
    if estimate is None:
        return None
    return {
        "value": _finite(estimate.value),
        "low": _finite(estimate.low),
        "high": _finite(estimate.high),
        "n": estimate.n,
        "items": estimate.items,
        "skipped": dict(estimate.skipped),
    }


def run_as_data(run: Recorded) -> dict[str, object]:
    """What a run was, in plain values."""
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
        "versions": dict(manifest.versions),
    }


def _group_as_data(group: Group) -> dict[str, object]:
    return {
        "title": group.title,
        "runs": [run_as_data(run) for run in group.runs],
        "metrics": [_line_as_data(line, group.labels) for line in group.lines],
        "parts": [
            {
                "title": part.title,
                "metrics": [
                    {**_line_as_data(line, group.labels), "line": name}
                    for name, line in zip(part.names, part.lines, strict=True)
                ],
            }
            for part in group.parts
        ],
        "error_types": {one.label: {**one.shares, "n": one.n} for one in group.errors},
        "curves": [
            {
                "title": chart.title,
                "runs": {
                    curve.label: [
                        {"edits": edits, **(estimate_as_data(one) or {})}
                        for edits, one in zip(curve.edits, curve.estimates, strict=True)
                    ]
                    for curve in chart.curves
                },
            }
            for chart in group.charts
        ],
        "success_matrices": {
            one.label: {
                "edits": list(one.matrix.moments),
                "positions": list(one.matrix.positions),
                "values": [[_finite(x) for x in row] for row in one.matrix.values.tolist()],
            }
            for one in group.matrices
        },
        "problems": [
            {"run": label, "reason": reason, "count": count}
            for label, reason, count in group.problems
        ],
    }


def _line_as_data(line: TableLine, labels: Sequence[str]) -> dict[str, object]:
    return {
        "metric": line.metric.name,
        "title": line.metric.title,
        "better": str(line.metric.better),
        "scale": line.metric.scale,
        "unedited": estimate_as_data(line.before),
        "runs": {
            label: estimate_as_data(one) for label, one in zip(labels, line.estimates, strict=True)
        },
        "best": [labels[place] for place in sorted(line.best)],
    }


def _names(group: Group) -> tuple[str, ...]:
    return tuple(line.metric.name for line in group.lines)


def _metric_table(lines: Sequence[TableLine], names: Sequence[str], labels: Sequence[str]) -> str:
    header = ("metric", "", "n", "unedited", *labels)
    rows = [
        (
            f"`{name}`",
            line.metric.arrow,
            line.num_cases,
            cell(line.before, line.metric.scale),
            *(
                _bold(cell(one, line.metric.scale), place in line.best, "**")
                for place, one in enumerate(line.estimates)
            ),
        )
        for name, line in zip(names, lines, strict=True)
    ]
    return _markdown_table(header, rows)


def _runs(group: Group) -> list[tuple[str, ...]]:
    return [
        (label, _describe_method(run), run.manifest.run, run.manifest.model)
        for label, run in zip(group.labels, group.runs, strict=True)
    ]


def _describe_method(run: Recorded) -> str:
    return variant_label(run.spec.editor.name, run.spec.editor.options)


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(one.replace("|", "\\|") for one in line) + " |" for line in lines
    )


def _latex_table(
    title: str, lines: Sequence[TableLine], names: Sequence[str], labels: Sequence[str]
) -> str:
    columns = "ll" + "r" * (2 + len(labels))
    header = ["metric", "", "$n$", "unedited", *map(_escaped, labels)]
    body = [
        [
            rf"\texttt{{{_escaped(name)}}}",
            _ARROWS[line.metric.arrow],
            line.num_cases,
            value(line.before, line.metric.scale),
            *(_latex_cell(one, line, place) for place, one in enumerate(line.estimates)),
        ]
        for name, line in zip(names, lines, strict=True)
    ]
    rows = [" & ".join(row) + r" \\" for row in body]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escaped(title)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(header) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _latex_cell(estimate: Estimate | None, line: TableLine, place: int) -> str:
    text = value(estimate, line.metric.scale)
    bold = rf"\textbf{{{text}}}" if place in line.best else text
    sure = interval(estimate, line.metric.scale)
    return rf"{bold} {{\tiny {sure}}}" if sure else bold


def _bold(text: str, wanted: bool, mark: str) -> str:
    """Mark the value, not its interval."""
    if not wanted:
        return text
    number, space, rest = text.partition(" ")
    return f"{mark}{number}{mark}{space}{rest}"


def _escaped(text: str) -> str:
    return re.sub(r"[\\^~&%$#_{}]", lambda found: _LATEX[found.group()], text)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
