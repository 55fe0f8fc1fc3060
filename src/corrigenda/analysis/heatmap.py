"""Heat maps of tokens by blocks: drawn in the terminal or a notebook, or saved as a figure."""

from __future__ import annotations

import importlib.util
import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from corrigenda.errors import BadConfig, MissingExtra
from corrigenda.files import write_atomically

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

_SHADES = " .:-=+*#%@"
_LABEL_WIDTH = 24
_FORMATS = (".png", ".pdf", ".svg")
_PAGE_WIDTH = 120
_TITLE_CHARACTERS_PER_INCH = 9
_HTML = '<pre style="font-family:monospace;line-height:1.2">{code}</pre>'


@dataclass(frozen=True)
class Heatmap:
    """Numbers by token and block, drawn as a map by a rich console.

    Attributes:
        title: One line above the map.
        rows: Labels, one per row.
        values: Row by row; NaN is drawn as an empty cell, what is below zero as zero.
        marked: Rows that are emphasised.
        column_name: What the columns, numbered from 0, are.
        unit: What the values are, for the scale of the figure.
    """

    title: str
    rows: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    marked: frozenset[int] = frozenset()
    column_name: str = "block"
    unit: str = "indirect effect"

    @property
    def largest(self) -> float:
        """Return the value of the darkest cell; 0 where nothing is above zero."""
        return max((v for row in self.values for v in row if not math.isnan(v)), default=0.0)

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[Text | Segment]:
        """Draw the map: cells in hundredths where the console is wide enough, else shades."""
        num_columns = len(self.values[0]) if self.values else 0
        width = min(
            _LABEL_WIDTH, max((cell_len(_format_label(row)) for row in self.rows), default=0)
        )
        cell = 4 if width + 3 + 4 * num_columns <= options.max_width else 1
        top = max(self.largest, 0.0)
        yield Text(self.title, style="bold")
        for number, (label, row) in enumerate(zip(self.rows, self.values, strict=True)):
            mark = "*" if number in self.marked else " "
            style = Style(bold=number in self.marked)
            yield Segment(f"{set_cell_size(_format_label(label), width)}{mark} ", style)
            for value in row:
                share = 0.0 if math.isnan(value) or top <= 0 else max(0.0, value / top)
                yield Segment(_format_cell(value, share, cell), _choose_background(share))
            yield Segment.line()
        numbers = "".join(
            f"{column:>{cell}}"
            if cell > 1
            else (str(column // 10 % 10) if column % 10 == 0 else " ")
            for column in range(num_columns)
        )
        yield Segment(f"{set_cell_size(self.column_name, width)}  {numbers}\n", Style(dim=True))
        if cell > 1:
            yield Text(f"values: 100 x {self.unit}", style="dim")
        else:
            yield Text(f"darkest: {top:.3g} {self.unit}", style="dim")


@dataclass(frozen=True, repr=False)
class Plot:
    """Heat maps with their captions: text when printed, HTML in a notebook, a file when saved.

    Attributes:
        maps: Heat maps, one above the other.
        caption: Text above them.
        note: A line below them.
    """

    maps: tuple[Heatmap, ...]
    caption: str = ""
    note: str = ""

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[Text | Segment | Heatmap]:
        """Draw caption, maps and note, with an empty line between them."""
        parts = [Text(self.caption), *self.maps, Text(self.note, style="dim")]
        first = True
        for part in parts:
            if isinstance(part, Text) and not part.plain:
                continue
            if not first:
                yield Segment.line()
            first = False
            yield part

    def __repr__(self) -> str:
        """Return the maps as text."""
        return self._draw().export_text().rstrip()

    def _repr_html_(self) -> str:
        """Return the maps as HTML, for notebooks."""
        return self._draw().export_html(inline_styles=True, code_format=_HTML)

    def _draw(self) -> Console:
        from rich.console import Console

        console = Console(file=io.StringIO(), record=True, width=_PAGE_WIDTH)
        console.print(self)
        return console

    def save(self, path: str | Path) -> None:
        """Save the maps as a figure; see `save_heatmaps` for its errors."""
        save_heatmaps(self.maps, path, note=self.note)


def check_figure(path: str | Path) -> None:
    """Refuse a figure that could not be saved, before any work is done.

    Raises:
        BadConfig (CG502): the name ends in neither .png, .pdf nor .svg.
        MissingExtra (CG504): matplotlib is not installed.
    """
    name = Path(path).name
    if not name.lower().endswith(_FORMATS):
        raise BadConfig(
            f'a figure cannot be saved as "{name}".',
            hint=f"Give a name that ends in {', '.join(_FORMATS)}.",
        )
    if not _is_installed("matplotlib"):
        raise MissingExtra(
            "saving figures needs matplotlib.", hint='pip install "corrigenda[report]"'
        )


def save_heatmaps(maps: Sequence[Heatmap], path: str | Path, *, note: str = "") -> None:
    """Save heat maps as one figure, one above the other.

    Args:
        maps: At least one.
        path: Its ending chooses the format: .png, .pdf or .svg.
        note: A line below the figure.

    Raises:
        MissingExtra (CG504): matplotlib is not installed.
        BadConfig (CG502): another ending.
        WriteFailed (CG601): the file could not be written.
    """
    path = Path(path)
    check_figure(path)
    from matplotlib.figure import Figure

    columns = max(len(each.values[0]) for each in maps)
    heights = [len(each.rows) for each in maps]
    width = 3.0 + 0.28 * columns
    figure = Figure(
        figsize=(width, 1.0 + sum(1.0 + 0.24 * rows for rows in heights)),
        layout="constrained",
    )
    axes = figure.subplots(len(maps), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, each in zip(axes, maps, strict=True):
        image = axis.imshow(
            each.values, aspect="auto", cmap="Purples", vmin=0.0, vmax=max(each.largest, 1e-9)
        )
        title = textwrap.fill(each.title, int(_TITLE_CHARACTERS_PER_INCH * width))
        axis.set_title(title, fontsize=10, parse_math=False)
        axis.set_xlabel(each.column_name)
        axis.set_yticks(range(len(each.rows)))
        axis.set_yticklabels(
            [
                _format_label(row) + ("*" if at in each.marked else "")
                for at, row in enumerate(each.rows)
            ],
            parse_math=False,
        )
        figure.colorbar(image, ax=axis, label=each.unit)
    if note:
        figure.supxlabel(note, fontsize=8, parse_math=False)
    write_atomically(
        path, lambda part: figure.savefig(part, format=path.suffix[1:].lower(), dpi=150)
    )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:
        return False


def _format_label(label: str) -> str:
    """Write a label on one line: blanks at its ends are dropped unless there is nothing else."""
    return " ".join(label.split()) or repr(label)


def _format_cell(value: float, share: float, width: int) -> str:
    if math.isnan(value):
        return " " * width
    if width > 1:
        return f"{100 * value:>{width}.0f}"
    return _SHADES[min(len(_SHADES) - 1, int(share * len(_SHADES)))]


def _choose_background(share: float) -> Style:
    """Return a colour from white to violet, with readable text on it."""
    low, high = (252, 251, 253), (84, 39, 143)
    mixed = [round(a + share * (b - a)) for a, b in zip(low, high, strict=True)]
    return Style(
        bgcolor=Color.from_rgb(*mixed), color=Color.parse("white" if share > 0.5 else "black")
    )
