"""HTML of what the app shows: bars, tables, heat maps, progress, errors. All text is escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from corrigenda.errors import CorrigendaError
from corrigenda.guarding.damage import GuardVerdict

if TYPE_CHECKING:
    from corrigenda.analysis.heatmap import Heatmap, Plot
    from corrigenda.api import Reply
    from corrigenda.app.tasks import StageProgress
    from corrigenda.assessment import Assessment
    from corrigenda.guarding.guard import GuardReport


def draw_note(text: str) -> str:
    """Return a paragraph; its lines stay lines."""
    return f"<p>{_escape(text)}</p>"


def draw_notices(notices: Sequence[str]) -> str:
    """Return notices as a list; nothing for none."""
    if not notices:
        return ""
    items = "".join(f"<li>{_escape(one)}</li>" for one in notices)
    return f'<ul class="notices">{items}</ul>'


def draw_error(error: CorrigendaError) -> str:
    """Return a coded error: code and name, what happened, where, and what to do."""
    lines = [error.message, *filter(None, (error.where, error.hint))]
    first, *rest = (f"<p>{_escape(line)}</p>" for line in lines)
    head = f"<strong>{error.code} {type(error).__name__}</strong>"
    return f'<div class="problem" role="alert"><p>{head}</p>{first}{"".join(rest)}</div>'


def draw_progress(progress: StageProgress) -> str:
    """Return a bar for the stage that runs, with its name and count."""
    if progress.current is None:
        return '<p>Waiting for the model ...</p><progress aria-label="waiting"></progress>'
    name, done, total = progress.current
    return (
        f"<p>{_escape(name)}: {done} of {total}</p>"
        f'<progress aria-label="{_escape(name)}" max="{max(total, 1)}" value="{done}"></progress>'
    )


def draw_reply(reply: Reply) -> str:
    """Return an answer with the likeliest next tokens as bars."""
    return (
        f'<p class="answer">{_escape(reply.prompt)} <strong>{_escape(reply.answer)}</strong></p>'
        f"{draw_bars(['now'], [reply])}"
    )


def draw_bars(names: Sequence[str], replies: Sequence[Reply]) -> str:
    """Return next tokens by probability, one column of bars for each reply; a token in each row.

    Args:
        names: Heads of the columns.
        replies: As many; a token that is not among the likeliest of a reply has no bar there.
    """
    tokens = list(dict.fromkeys(token for reply in replies for token, _ in reply.top))
    if not tokens:
        return ""
    heads = "".join(f'<th scope="col">{_escape(name)}</th>' for name in names)
    rows = []
    for token in tokens:
        cells = "".join(_draw_bar(dict(reply.top).get(token)) for reply in replies)
        rows.append(f'<tr><th scope="row"><code>{_show_token(token)}</code></th>{cells}</tr>')
    return _wrap(
        f"<thead><tr><th scope='col'>next token</th>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody>",
        caption="Likeliest next tokens",
        kind="bars",
    )


def draw_answers(assessment: Assessment) -> str:
    """Return every prompt of an assessment with its answers before and after."""
    heads = ("prompt", "asked as", "before", "after", "as wanted")
    rows = []
    for item in assessment.answers:
        wanted = item.is_wanted(assessment.facts[item.fact])
        role = f"{item.role}, in chat" if item.chat else str(item.role)
        mark = '<td class="good">yes</td>' if wanted else '<td class="bad">no</td>'
        cells = "".join(f"<td>{_escape(one)}</td>" for one in (role, item.before, item.after))
        rows.append(f'<tr><th scope="row">{_escape(item.prompt)}</th>{cells}{mark}</tr>')
    return _wrap(
        f"<thead><tr>{_draw_heads(heads)}</tr></thead><tbody>{''.join(rows)}</tbody>",
        caption="Answers before and after",
    )


def draw_assessment(assessment: Assessment) -> str:
    """Return what a correction does: outcome, sizes, and all answers."""
    outcomes = ", ".join(map(str, assessment.outcomes))
    sizes = "; ".join(
        f"{one.parameter} by {one.relative_norm:.2%} of its norm" for one in assessment.changes
    )
    changed = f"<p>Changed: {_escape(sizes)}.</p>" if sizes else ""
    kind = "good" if assessment.succeeded else "bad"
    return (
        f'<p>Outcome: <strong class="{kind}">{outcomes}</strong> by {_escape(assessment.method)}'
        f"</p>{changed}{draw_notices(assessment.notices)}{draw_answers(assessment)}"
    )


def draw_verdict(report: GuardReport) -> str:
    """Return the verdict of the guard with the number that decided, and all damages."""
    kind = "good" if report.verdict is GuardVerdict.FREE else "bad"
    heads = ("measure", "damage", "interval", "free up to", "n")
    return (
        f'<p>Guard: <strong class="{kind}">{report.verdict}</strong>: {_escape(report.reason)}.</p>'
        + draw_notices(report.notices)
        + draw_table(heads, report.rows(), caption="Damage to what must not change")
    )


def draw_table(heads: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str) -> str:
    """Return a table; the first cell of each row is its head."""
    lines = "".join(
        f'<tr><th scope="row">{_escape(first)}</th>'
        + "".join(f"<td>{_escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return _wrap(
        f"<thead><tr>{_draw_heads(heads)}</tr></thead><tbody>{lines}</tbody>", caption=caption
    )


def draw_plot(plot: Plot) -> str:
    """Return heat maps as tables of numbers, shaded; the pointer shows where a cell is."""
    maps = "".join(map(_draw_heatmap, plot.maps))
    caption = "".join(f"<p>{_escape(line)}</p>" for line in plot.caption.splitlines())
    note = f'<p class="note">{_escape(plot.note)}</p>' if plot.note else ""
    return f"{caption}{maps}{note}"


def wrap_region(content: str, label: str) -> str:
    """Return HTML in a region with a name, which is scrolled by keyboard where it is wide."""
    name = _escape(label)
    return f'<div class="scrolled" role="region" tabindex="0" aria-label="{name}">{content}</div>'


def _draw_heatmap(heatmap: Heatmap) -> str:
    top = max(heatmap.largest, 1e-9)
    columns = range(len(heatmap.values[0]) if heatmap.values else 0)
    heads = "".join(f'<th scope="col">{number}</th>' for number in columns)
    rows = []
    for place, (label, values) in enumerate(zip(heatmap.rows, heatmap.values, strict=True)):
        name = " ".join(label.split()) or repr(label)
        mark = "*" if place in heatmap.marked else ""
        cells = "".join(
            _draw_cell(value, top, f"{name}, {heatmap.column_name} {number}", heatmap.unit)
            for number, value in enumerate(values)
        )
        rows.append(f'<tr><th scope="row">{_escape(name)}{mark}</th>{cells}</tr>')
    return _wrap(
        f"<thead><tr><th scope='col'>{_escape(heatmap.column_name)}</th>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody>",
        caption=f"{heatmap.title} (100 x {heatmap.unit})",
        kind="heat",
    )


def _draw_cell(value: float, top: float, place: str, unit: str) -> str:
    if math.isnan(value):
        return "<td></td>"
    share = min(1.0, max(0.0, value / top))
    title = _escape(f"{place}: {unit} {value:.3f}")
    return f'<td style="--share:{share:.2f}" title="{title}">{round(100 * value)}</td>'


def _draw_bar(probability: float | None) -> str:
    if probability is None:
        return "<td>-</td>"
    return (
        f'<td><span class="bar" style="--share:{probability:.3f}" aria-hidden="true"></span>'
        f"{probability:.1%}</td>"
    )


def _draw_heads(heads: Sequence[str]) -> str:
    return "".join(f'<th scope="col">{_escape(head)}</th>' for head in heads)


def _wrap(content: str, *, caption: str, kind: str = "plain") -> str:
    """Return a table with its caption, in a region of that name."""
    label = _escape(caption)
    table = f'<table class="{kind}"><caption>{label}</caption>{content}</table>'
    return wrap_region(table, caption)


def _show_token(token: str) -> str:
    """Return a token with its blanks visible where it has nothing else."""
    return _escape(token.strip() or repr(token))


def _escape(text: object) -> str:
    return html.escape(str(text))
