"""Rows: plain, checked where they contradict themselves, and the same after a round trip."""

from __future__ import annotations

import subprocess
import sys

import pytest

from corrigenda.cases import Against
from corrigenda.errors import MalformedRows
from corrigenda.rows import Measurement, Row, Stage, from_frame, to_frame
from tests.support.rows import FED, GREEDY

FULL = Row(
    run="r",
    case="7",
    probe=2,
    role="locality/forgetfulness",
    protocol=FED,
    against=Against.UNEDITED,
    prompt="Rome is in",
    expected=[["Italy", "Italia"], ["Europe"]],
    rivals=["France"],
    test="t",
    every=False,
    rounds=2,
    position=3,
    edits=5,
    answer=" Italy",
    answer_before=" France",
    token_ids=[1, 2],
    predicted=[1, 3],
    predicted_before=[1, 2],
    log_probs=[-0.1, -0.2],
    log_probs_before=[-0.3, -0.4],
    rival_log_probs=[[-1.0]],
    rival_log_probs_before=[[-2.0]],
    divergence=[0.5],
    divergence_reversed=[0.25],
    vocabulary=100,
    model="b",
    model_before="a",
    tags=["hops=3"],
)


def test_parquet_keeps_every_field(tmp_path) -> None:
    import polars

    bare = Row(case="8", role="fluency", protocol=GREEDY, stage=Stage.BEFORE, skipped="too long")
    to_frame([FULL, bare], Row).write_parquet(tmp_path / "rows.parquet")
    assert from_frame(polars.read_parquet(tmp_path / "rows.parquet"), Row) == [FULL, bare]


def test_tables_have_their_columns_even_without_rows() -> None:
    assert to_frame([], Row).schema == to_frame([FULL], Row).schema


def test_measurements_keep_every_field() -> None:
    records = [Measurement(run="r", case="u", name="cost/edit_seconds", values=[1.5], edits=3)]
    assert from_frame(to_frame(records, Measurement), Measurement) == records


def test_other_tables_are_refused() -> None:
    frame = to_frame([FULL], Row).drop("role")
    with pytest.raises(MalformedRows, match=r"missing \['role'\]"):
        from_frame(frame, Row)


def test_lists_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(MalformedRows, match="`predicted` has 1 entries for 2 tokens"):
        Row(case="1", role="reliability", protocol=FED, token_ids=[1, 2], predicted=[1])


def test_a_model_is_not_compared_with_itself() -> None:
    with pytest.raises(MalformedRows, match="given by the edited model itself"):
        Row(case="1", role="locality", protocol=GREEDY, model="a", model_before="a")


def test_neither_rows_nor_metrics_import_torch() -> None:
    names = "rows", "metrics.registry", "metrics.fluency", "metrics.consistency"
    code = "import sys\n" + "\n".join(f"import corrigenda.{name}" for name in names)
    code += "\nassert not {'torch', 'transformers', 'nltk', 'sklearn', 'polars'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
