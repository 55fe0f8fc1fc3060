"""HTML of the app: escaped text, heads of rows and columns, names of regions."""

from __future__ import annotations

import math

from corrigenda.analysis.heatmap import Heatmap, Plot
from corrigenda.api import Reply
from corrigenda.app import drawing
from corrigenda.app.tasks import StageProgress
from corrigenda.errors import SubjectNotFound

EVIL = '<script>alert("x")</script>'


def test_a_coded_error_has_its_code_and_what_to_do() -> None:
    error = SubjectNotFound("it does not occur.", where="fact 3", hint='Did you mean "a<b"?')
    shown = drawing.draw_error(error)
    assert 'role="alert"' in shown
    assert "<strong>CG103 SubjectNotFound</strong>" in shown
    for text in ("it does not occur.", "fact 3", "Did you mean &quot;a&lt;b&quot;?"):
        assert f"<p>{text}</p>" in shown


def test_no_text_of_models_or_users_is_taken_for_html() -> None:
    reply = Reply(EVIL, EVIL, EVIL, ((EVIL, 0.5),))
    heatmap = Heatmap(EVIL, (EVIL,), ((0.5,),), unit=EVIL)
    for shown in (
        drawing.draw_reply(reply),
        drawing.draw_bars([EVIL], [reply]),
        drawing.draw_plot(Plot((heatmap,), EVIL, EVIL)),
        drawing.draw_table([EVIL], [(EVIL, EVIL)], caption=EVIL),
        drawing.draw_notices([EVIL]),
        drawing.draw_note(EVIL),
        drawing.draw_progress(StageProgress({EVIL: (1, 2)})),
    ):
        assert "&lt;script&gt;" in shown
        assert "<script" not in shown
        assert 'alert("' not in shown


def test_bars_hold_every_token_of_both_replies() -> None:
    before = Reply("p", "Paris", "Paris", ((" Paris", 0.75), (" Rome", 0.125)))
    after = Reply("p", "Rome", "Rome", ((" Rome", 0.9), ("\n", 0.05)))
    shown = drawing.draw_bars(["before", "after"], [before, after])
    assert shown.count('<th scope="row">') == 3
    assert "75.0%" in shown
    assert "12.5%" in shown
    assert "--share:0.900" in shown
    assert "&#x27;\\n&#x27;" in shown
    assert shown.count("<td>-</td>") == 2
    assert drawing.draw_bars(["now"], [Reply("p", "", "", ())]) == ""


def test_cells_of_a_heat_map_say_where_they_are() -> None:
    heatmap = Heatmap(
        "states", ("The", " France"), ((-0.001, math.nan), (0.25, 0.5)), frozenset({1})
    )
    shown = drawing.draw_plot(Plot((heatmap,), "caption", "note"))
    assert 'title="France, block 1: indirect effect 0.500"' in shown
    assert "<td></td>" in shown
    assert ">-0<" not in shown
    assert "--share:0.50" in shown
    assert "France*" in shown
    assert 'role="region" tabindex="0" aria-label="states' in shown


def test_progress_is_a_bar_with_a_name() -> None:
    shown = drawing.draw_progress(StageProgress({"search": (5, 20)}))
    assert "search: 5 of 20" in shown
    assert 'max="20" value="5"' in shown
    assert "Waiting" in drawing.draw_progress(StageProgress())
