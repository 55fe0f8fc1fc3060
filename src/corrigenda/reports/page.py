"""One HTML file for a report: tables, figures and generations, readable without a network."""

from __future__ import annotations

from importlib.resources import files

from corrigenda.errors import MissingExtra
from corrigenda.reports import figures, numbers
from corrigenda.reports.sections import Group, Report

_TEMPLATE = "page.html.jinja"


def render_page(report: Report) -> str:
    """Render the report as one HTML page with its figures inside; it loads nothing.

    Raises:
        MissingExtra (CG504): matplotlib or jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise MissingExtra(
            "a page needs jinja2.", hint='pip install "corrigenda[report]"'
        ) from error
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = files("corrigenda.reports").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    drawn = [[Markup(one) for one in _draw_figures(group)] for group in report.groups]
    return environment.from_string(text).render(report=report, numbers=numbers, figures=drawn)


def _draw_figures(group: Group) -> list[str]:
    drawn = [figures.draw_curves(chart) for chart in group.charts]
    if group.trade_off is not None:
        drawn.append(figures.draw_trade_off(group.trade_off))
    if group.errors:
        drawn.append(figures.draw_error_types(group.errors))
    drawn += [figures.draw_success_matrix(one) for one in group.matrices]
    return drawn
