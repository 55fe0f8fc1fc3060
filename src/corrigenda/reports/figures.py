"""Figures of a report as SVG text, drawn by matplotlib (extra `report`)."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

from corrigenda.errors import MissingExtra
from corrigenda.metrics.error_types import AnswerType

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from corrigenda.reports.sections import Chart, ErrorShares, Matrix, TradeOff

# Okabe and Ito's colours, which people with colour blindness tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_MARKERS = "osD^vPX*"
_OUTCOME_COLOURS = {
    AnswerType.SUCCESS: "#009E73",
    AnswerType.MEANINGLESS: "#000000",
    AnswerType.MISSING: "#56B4E9",
    AnswerType.PARTIAL: "#E69F00",
    AnswerType.IRRELEVANT: "#D55E00",
}
_SETTINGS = {
    "svg.hashsalt": "corrigenda",
    "svg.fonttype": "none",
    "font.size": 9,
    # Labels are names, in which a dollar sign is one.
    "text.parse_math": False,
}
_TITLE_CHARACTERS_PER_INCH = 10


def draw_curves(chart: Chart) -> str:
    """Draw a metric over the edits of a sequence, with bands of its interval.

    Solid lines are of all edits so far, dashed ones of the same edits right after each was made.
    """

    def draw(axes: Axes) -> None:
        for place, curve in enumerate(chart.curves):
            colour, marker = _choose_style(place)
            edits = list(curve.edits)
            shown = [one.value * chart.scale for one in curve.estimates]
            low = [one.low * chart.scale for one in curve.estimates]
            high = [one.high * chart.scale for one in curve.estimates]
            axes.plot(edits, shown, color=colour, marker=marker, markersize=4, label=curve.label)
            axes.fill_between(edits, low, high, color=colour, alpha=0.15, linewidth=0)
            for early in (one for one in chart.immediate if one.label == curve.label):
                axes.plot(
                    list(early.edits),
                    [one.value * chart.scale for one in early.estimates],
                    color=colour,
                    linestyle="--",
                    linewidth=1,
                    label=f"{curve.label}, right after each edit",
                )
        most = max(edits for curve in chart.curves for edits in curve.edits)
        if most >= 100:
            axes.set_xscale("log")
        axes.set_xlabel("edits in force")
        axes.set_title(chart.title)
        axes.legend(frameon=False)

    return _draw_svg(draw, width=6.0, height=3.2)


def draw_trade_off(found: TradeOff) -> str:
    """Draw each run as a point: success of its edits against locality."""

    def draw(axes: Axes) -> None:
        for place, point in enumerate(found.points):
            colour, marker = _choose_style(place)
            x, y = point.kept, point.gained
            axes.errorbar(
                x.value * found.kept.scale,
                y.value * found.gained.scale,
                xerr=_measure_error_bar(x.value, x.low, x.high, found.kept.scale),
                yerr=_measure_error_bar(y.value, y.low, y.high, found.gained.scale),
                color=colour,
                marker=marker,
                linestyle="none",
                elinewidth=0.8,
                label=point.label,
            )
        axes.set_xlabel(found.kept.name)
        axes.set_ylabel(found.gained.name)
        axes.set_title("what is gained, and what is kept")
        axes.legend(frameon=False, loc="best")

    return _draw_svg(draw, width=5.0, height=3.6)


def draw_error_types(found: tuple[ErrorShares, ...]) -> str:
    """Draw bars of the types into which answers to edited prompts fall."""

    def draw(axes: Axes) -> None:
        labels = [one.label for one in found]
        left = [0.0] * len(found)
        for outcome in AnswerType:
            widths = [100 * one.shares.get(str(outcome), 0.0) for one in found]
            colour = _OUTCOME_COLOURS[outcome]
            axes.barh(labels, widths, left=left, color=colour, label=str(outcome), height=0.7)
            left = [begin + width for begin, width in zip(left, widths, strict=True)]
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of answers")
        axes.legend(frameon=False, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0))

    return _draw_svg(draw, width=7.0, height=0.9 + 0.32 * len(found))


def draw_success_matrix(found: Matrix) -> str:
    """Draw the success of every edit (across) after so many edits (down); white was not asked."""

    def draw(axes: Axes) -> None:
        values = found.matrix.values
        image = axes.imshow(values, aspect="auto", vmin=0, vmax=1, cmap="viridis")
        moments = found.matrix.moments
        step = max(1, len(moments) // 10)
        axes.set_yticks(range(0, len(moments), step), [str(one) for one in moments[::step]])
        places = found.matrix.positions
        across = max(1, len(places) // 10)
        axes.set_xticks(range(0, len(places), across), [str(one) for one in places[::across]])
        axes.set_xlabel("edit")
        axes.set_ylabel("edits in force")
        axes.set_title(f"{found.label} ({found.matrix.protocol})")
        axes.figure.colorbar(image, ax=axes, label="success")

    return _draw_svg(draw, width=6.0, height=3.2)


def _choose_style(place: int) -> tuple[str, str]:
    return _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]


def _measure_error_bar(
    value: float, low: float, high: float, scale: float
) -> list[list[float]] | None:
    """Return the lengths of an error bar below and above; None without an interval."""
    if math.isnan(low):
        return None
    return [[max(0.0, value - low) * scale], [max(0.0, high - value) * scale]]


def _draw_svg(draw: Callable[[Axes], None], *, width: float, height: float) -> str:
    """Draw on one pair of axes; equal content gives equal text."""
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra(
            "figures need matplotlib.", hint='pip install "corrigenda[report]"'
        ) from error
    with mpl.rc_context(_SETTINGS):  # pyright: ignore[reportArgumentType]  # names of settings
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        draw(axes)
        axes.set_title(textwrap.fill(axes.get_title(), int(_TITLE_CHARACTERS_PER_INCH * width)))
        text = io.StringIO()
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
