"""Heat maps in the terminal and as files."""

from __future__ import annotations

import math
import sys
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from corrigenda.analysis.causal_trace import CausalTrace
from corrigenda.analysis.heatmap import Heatmap, check_figure, save_heatmaps
from corrigenda.analysis.injection import Injection, LayerInjections
from corrigenda.analysis.trace_average import average_traces
from corrigenda.analysis.trace_effects import Kind, TraceEffects
from corrigenda.errors import BadConfig, MissingExtra, WriteFailed

MAP = Heatmap(
    title="state restored",
    rows=(" The", " Needle", "\n", "$x_{"),
    values=((0.0, 0.0), (0.87, 0.1), (math.nan, -0.2), (0.0, 0.44)),
    marked=frozenset({1}),
)


def drawn(each: Heatmap, width: int, *, colour: bool = False) -> str:
    console = Console(
        file=StringIO(),
        width=width,
        force_terminal=colour,
        color_system="truecolor" if colour else None,
    )
    console.print(each)
    return console.file.getvalue()


def test_wide_terminals_get_numbers() -> None:
    lines = drawn(MAP, 60).splitlines()
    assert lines[0] == "state restored"
    assert lines[1].split() == ["The", "0", "0"]
    assert lines[2].split() == ["Needle*", "87", "10"]
    assert lines[3].split() == ["'\\n'", "-20"]
    assert lines[5].split() == ["block", "0", "1"]


def test_narrow_terminals_get_shades_and_every_row_fits() -> None:
    many = Heatmap("m", ("a", "b"), (tuple(i / 40 for i in range(40)), (0.0,) * 40))
    lines = drawn(many, 50).splitlines()
    assert all(len(line) <= 50 for line in lines)
    assert lines[1].endswith("@")
    assert lines[2].strip() == "b"
    assert "darkest: 0.975" in lines[-1]


def test_colour_follows_the_value() -> None:
    text = drawn(MAP, 60, colour=True)
    assert "48;2;84;39;143" in text  # the largest value
    assert "48;2;252;251;253" in text  # zero


def test_a_map_without_effects_can_be_drawn() -> None:
    assert "0" in drawn(Heatmap("m", ("a",), ((0.0,),)), 40)
    assert drawn(Heatmap("m", ("a",), ((math.nan,),)), 40)


@pytest.mark.parametrize(
    ("name", "magic"), [("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.SVG", b"<?xml")]
)
def test_figures_are_saved(tmp_path: Path, name: str, magic: bytes) -> None:
    pytest.importorskip("matplotlib")
    save_heatmaps([MAP, MAP], tmp_path / name, note="a $note")
    assert (tmp_path / name).read_bytes().startswith(magic)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"a\.gif"):
        save_heatmaps([MAP], tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_an_error_of_writing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(WriteFailed):
        save_heatmaps([MAP], tmp_path / "none" / "a.png")


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"corrigenda\[report\]"):
        check_figure("a.png")


def test_results_of_analyses_have_a_short_repr_and_a_plot() -> None:
    zeros = torch.zeros(2, 3)
    shared = {
        "clean": 0.9,
        "corrupted": 0.1,
        "effects": {Kind.STATE: zeros + 0.5},
        "errors": {Kind.STATE: zeros},
        "severed": {Kind.MLP: torch.ones(3)},
    }
    trace = CausalTrace(
        prompt="Rome is", subject="Rome", answer="old", tokens=("Rome", " is"),
        subject_tokens=range(1), noise=1.0, samples=2, window=1, seed=0, **shared,
    )  # fmt: skip
    average = average_traces([trace, trace])
    assert isinstance(trace, TraceEffects)
    assert isinstance(average, TraceEffects)
    assert average.total_effect == trace.total_effect == pytest.approx(0.8)
    for result in (trace, average):
        assert len(repr(result).splitlines()) == 3
        maps = result.plot().maps
        assert [len(one.rows) for one in maps] == [len(result.effects[Kind.STATE]), 2]
        assert maps[1].values[1] == (1.0, 1.0, 1.0)
    results = LayerInjections([Injection(1, (True, False), ((True,), ()))])
    assert repr(results) == "1 block(s), best: block 1, share 0.50, transfer 1.00"
    (heatmap,) = results.plot().maps
    assert heatmap.values[0][1] == 0.5
    assert math.isnan(heatmap.values[0][0])
    assert repr(LayerInjections()) == "no block measured"
