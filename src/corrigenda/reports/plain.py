"""The tables of a report as Markdown, LaTeX and JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence

from corrigenda.markdown import (
    escape_markdown,
    format_code,
    join_lines,
    longest_run,
    write_markdown_table,
)
from corrigenda.metrics.estimate import Estimate
from corrigenda.reports.numbers import describe_signs, format_cell, format_interval, format_value
from corrigenda.reports.sections import Curve, Group, Report, TableLine
from corrigenda.run.store import Recorded

_LATEX = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}
_ARROWS = {"^": r"$\uparrow$", "v": r"$\downarrow$", "=": r"$=$"}


def render_markdown(report: Report) -> str:
    """Render all groups as Markdown: tables, problems, environment; then what to cite."""
    parts = [
        f"# {escape_markdown(report.title)}",
        f"{describe_signs(report.bootstrap)} The best of a line is bold.",
    ]
    for group in report.groups:
        parts.append(f"## {escape_markdown(group.title)}")
        parts.append(_format_metric_table(group.lines, _list_names(group), group.labels))
        for part in group.parts:
            parts += [
                f"### {escape_markdown(part.title)}",
                _format_metric_table(part.lines, part.names, group.labels),
            ]
        parts += [
            f"- {escape_markdown(label)}: {count} x {escape_markdown(reason)}"
            for label, reason, count in group.problems
        ]
        parts += [
            f"- {escape_markdown(title)}: {count} {escape_markdown(reason)}"
            for title, reason, count in group.exclusions
        ]
        parts.append(write_markdown_table(("run", "method", "id", "model"), _list_runs(group)))
    entries = [one.bibtex for one in report.citations]
    fence = "`" * max(3, longest_run("\n".join(entries), "`") + 1)
    parts += ["## References", f"{fence}bibtex", *entries, fence]
    return "\n\n".join(parts) + "\n"


def render_latex(report: Report) -> str:
    """Render a `table` for each group and part, for documents that load `booktabs`."""
    tables: list[str] = []
    for group in report.groups:
        tables.append(
            _format_latex_table(group.title, group.lines, _list_names(group), group.labels)
        )
        tables += [
            _format_latex_table(
                f"{group.title}: {part.title}", part.lines, part.names, group.labels
            )
            for part in group.parts
        ]
    return "\n\n".join(tables) + "\n"


def convert_report(report: Report) -> dict[str, object]:
    """Convert a report to plain dictionaries and lists; numbers are unscaled."""
    return {
        "title": report.title,
        "intervals": report.bootstrap._asdict(),
        "groups": [_convert_group(group) for group in report.groups],
        "citations": [{**one._asdict(), "bibtex": one.bibtex} for one in report.citations],
    }


def render_json(report: Report) -> str:
    """Render `convert_report` as text."""
    return json.dumps(convert_report(report), indent=2, ensure_ascii=False) + "\n"


def convert_estimate(estimate: Estimate | None) -> dict[str, object] | None:
    """Convert an estimate to plain values; what is not finite is null."""
    if estimate is None:
        return None
    return {
        "value": _drop_infinite(estimate.value),
        "low": _drop_infinite(estimate.low),
        "high": _drop_infinite(estimate.high),
        "n": estimate.n,
        "items": estimate.items,
        "skipped": dict(estimate.skipped),
    }


def convert_run(run: Recorded) -> dict[str, object]:
    """Convert the description of a run to plain values."""
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


def _convert_group(group: Group) -> dict[str, object]:
    return {
        "title": group.title,
        "runs": [convert_run(run) for run in group.runs],
        "metrics": [_convert_line(line, group.labels) for line in group.lines],
        "parts": [
            {
                "title": part.title,
                "metrics": [
                    {**_convert_line(line, group.labels), "line": name}
                    for name, line in zip(part.names, part.lines, strict=True)
                ],
            }
            for part in group.parts
        ],
        "error_types": {one.label: {**one.shares, "n": one.n} for one in group.errors},
        "curves": [
            {
                "title": chart.title,
                "runs": {one.label: _convert_curve(one) for one in chart.curves},
                "immediate": {one.label: _convert_curve(one) for one in chart.immediate},
            }
            for chart in group.charts
        ],
        "success_matrices": {
            one.label: {
                "edits": list(one.matrix.moments),
                "positions": list(one.matrix.positions),
                "values": [[_drop_infinite(x) for x in row] for row in one.matrix.values.tolist()],
            }
            for one in group.matrices
        },
        "side_by_side": None if group.side_by_side is None else _convert_answers(group),
        "exclusions": [
            {"benchmark": title, "reason": reason, "count": count}
            for title, reason, count in group.exclusions
        ],
        "problems": [
            {"run": label, "reason": reason, "count": count}
            for label, reason, count in group.problems
        ],
    }


def _convert_curve(curve: Curve) -> list[dict[str, object]]:
    return [
        {"edits": edits, **(convert_estimate(one) or {})}
        for edits, one in zip(curve.edits, curve.estimates, strict=True)
    ]


def _convert_answers(group: Group) -> dict[str, object]:
    found = group.side_by_side
    assert found is not None
    return {
        "case": found.case,
        "probes": [
            {
                **one._asdict(),
                "before": one.before._asdict(),
                "answers": {
                    label: answer._asdict()
                    for label, answer in zip(group.labels, one.answers, strict=True)
                },
            }
            for one in found.probes
        ],
    }


def _convert_line(line: TableLine, labels: Sequence[str]) -> dict[str, object]:
    return {
        "metric": line.metric.name,
        "title": line.metric.title,
        "better": str(line.metric.better),
        "scale": line.metric.scale,
        "unedited": convert_estimate(line.before),
        "runs": {
            label: convert_estimate(one) for label, one in zip(labels, line.estimates, strict=True)
        },
        "best": [labels[place] for place in sorted(line.best)],
    }


def _list_names(group: Group) -> tuple[str, ...]:
    return tuple(line.metric.name for line in group.lines)


def _format_metric_table(
    lines: Sequence[TableLine], names: Sequence[str], labels: Sequence[str]
) -> str:
    header = ("metric", "", "n", "unedited", *map(escape_markdown, labels))
    rows = [
        (
            format_code(name),
            line.metric.arrow,
            line.num_cases,
            format_cell(line.before, line.metric.scale),
            *(
                _embolden(format_cell(one, line.metric.scale), place in line.best, "**")
                for place, one in enumerate(line.estimates)
            ),
        )
        for name, line in zip(names, lines, strict=True)
    ]
    return write_markdown_table(header, rows)


def _list_runs(group: Group) -> list[tuple[str, ...]]:
    rows = [
        (label, run.spec.editor.variant, run.manifest.run, run.manifest.model)
        for label, run in zip(group.labels, group.runs, strict=True)
    ]
    return [tuple(map(escape_markdown, row)) for row in rows]


def _format_latex_table(
    title: str, lines: Sequence[TableLine], names: Sequence[str], labels: Sequence[str]
) -> str:
    columns = "ll" + "r" * (2 + len(labels))
    header = ["metric", "", "$n$", "unedited", *map(_escape, labels)]
    body = [
        [
            rf"\texttt{{{_escape(name)}}}",
            _ARROWS[line.metric.arrow],
            line.num_cases.replace("<", "$<$"),
            format_value(line.before, line.metric.scale),
            *(_format_latex_cell(one, line, place) for place, one in enumerate(line.estimates)),
        ]
        for name, line in zip(names, lines, strict=True)
    ]
    rows = [" & ".join(row) + r" \\" for row in body]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escape(title)}}}",
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


def _format_latex_cell(estimate: Estimate | None, line: TableLine, place: int) -> str:
    text = format_value(estimate, line.metric.scale)
    bold = rf"\textbf{{{text}}}" if place in line.best else text
    sure = format_interval(estimate, line.metric.scale)
    return rf"{bold} {{\tiny {sure}}}" if sure else bold


def _embolden(text: str, wanted: bool, mark: str) -> str:
    """Mark the value, not its interval."""
    if not wanted:
        return text
    number, space, rest = text.partition(" ")
    return f"{mark}{number}{mark}{space}{rest}"


def _escape(text: str) -> str:
    return re.sub(r"[\\^~&%$#_{}]", lambda found: _LATEX[found.group()], join_lines(text))


def _drop_infinite(number: float) -> float | None:
    return number if math.isfinite(number) else None
