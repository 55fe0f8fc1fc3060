"""Rows of the table of real models: which are kept, and how they are written."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOW = {"rome": {"weights": "w", "options": "o"}, "ft": {"weights": "w", "options": "f"}}


@pytest.fixture(scope="module")
def rows():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "perf"))
        import table_rows

        yield table_rows


def row(label="rome", regime="single", *, model="small", facts=30, **more):
    origin = NOW.get(label, {})
    return {
        "model": model,
        "label": label,
        "regime": regime,
        "facts": facts,
        "origin": origin,
        **more,
    }


def test_rows_of_other_weights_or_options_are_dropped(rows):
    old = {"weights": "w", "options": "older"}
    kept = [row(), row("ft"), row("grace"), row(model="other", origin=old)]
    assert rows.drop_stale([*kept, row(regime="batch", origin=old)], "small", NOW) == kept
    elsewhere = {"rome": {"weights": "v", "options": "o"}}
    assert rows.drop_stale(kept, "small", elsewhere) == kept[1:]


def test_a_row_takes_the_place_of_its_like_and_all_are_sorted(rows):
    found = rows.add_row([row("rome", "sequence"), row("rome", "single"), row("ft")], row(facts=5))
    assert [(one["label"], one["regime"], one["facts"]) for one in found] == [
        ("ft", "single", 30),
        ("rome", "single", 5),
        ("rome", "sequence", 30),
    ]


def test_only_what_is_missing_is_measured(rows):
    known = [row(), row(regime="batch", facts=10), row(regime="records", facts=50, error="CG201")]
    facts = {"single": 30, "batch": 30, "records": 50}
    regimes = ["single", "batch", "records"]
    assert rows.find_missing(known, "small", "rome", regimes, facts) == ["batch"]
    assert rows.find_missing(known, "small", "ft", regimes, facts) == regimes
    assert rows.find_missing(known, "other", "rome", regimes, facts) == regimes
    again = rows.find_missing(known, "small", "rome", regimes, facts, again=True)
    assert again == ["batch", "records"]


def test_shares_have_their_intervals(rows):
    assert rows.write_share([0.9, 0.7348, 0.979]) == "0.90 (0.73-0.98)"
    assert rows.write_share([1.0, math.nan, math.nan]) == "1.00"
    assert rows.write_share(None) == rows.write_share([math.nan] * 3) == "-"


def test_tables_of_edits_chat_and_records(rows):
    shares = {"efficacy": [1.0, 0.9, 1.0], "paraphrase": [0.5, 0.4, 0.6]}
    lines = rows.write_tables(
        [
            row(
                shares=shares | {"chat efficacy": [0.25, 0.1, 0.4]},
                edited=30,
                asked=30,
                seconds=7.25,
                bytes=20480.0,
                fit_seconds=2.5,
                perplexity=[1.01, 1.5],
                refused={"CG201": 2},
            ),
            row(regime="sequence", edited=30, asked=10),
            row("ft", error="CG502 BadConfig: no | here"),
            row(regime="records", facts=50, edited=50, shares={"ES": [1.0, 0.9, 1.0]}),
        ]
    )
    assert lines == [
        "",
        "| method | facts | efficacy | paraphrase | neighbours | same subject | perplexity "
        "| CPU s a fact | KiB a fact | fit, CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|",
        "| `rome` | 30 alone (2 CG201) | 1.00 (0.90-1.00) | 0.50 (0.40-0.60) | - | - "
        "| 1.01 (<= 1.5) | 7.2 | 20 | 2 |",
        "| `rome` | 30 in a row, 10 asked | - | - | - | - | - | - | - | - |",
        "| `ft` | 30 alone | CG502 BadConfig: no \\| here |  |  |  |  |  |  |  |",
        "",
        "The same edits, asked in the chat template:",
        "",
        "| method | facts | efficacy | paraphrase | neighbours | same subject |",
        "|---|---|---|---|---|---|",
        "| `rome` | 30 alone (2 CG201) | 0.25 (0.10-0.40) | - | - | - |",
        "",
        "Records of CounterFact, each edited alone:",
        "",
        "| method | records | ES | PS | NS | S | CPU s a fact |",
        "|---|---|---|---|---|---|---|",
        "| `rome` | 50 alone | 1.00 (0.90-1.00) | - | - | - | - |",
        "",
    ]


def test_a_block_is_replaced_and_nothing_else(rows, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n<!-- a: begin -->\nold\n<!-- a: end -->\nrest\n")
    rows.replace_block(page, "a", ["", "new", ""])
    assert page.read_text() == "# Title\n<!-- a: begin -->\n\nnew\n\n<!-- a: end -->\nrest\n"
    with pytest.raises(ValueError, match="no block b"):
        rows.replace_block(page, "b", [])


def test_rows_are_read_back(rows, tmp_path):
    assert rows.read_rows(tmp_path / "none.json") == []
    (tmp_path / "rows.json").write_text('[{"model": "small"}]')
    assert rows.read_rows(tmp_path / "rows.json") == [{"model": "small"}]


def test_equal_settings_have_equal_origins(rows):
    assert rows.hash_origin({"a": 1, "b": (2,)}) == rows.hash_origin({"b": [2], "a": 1})
    assert rows.hash_origin({"a": 1}) != rows.hash_origin({"a": 2})
