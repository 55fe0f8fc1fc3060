"""Published task files: all records are read, and a model can be asked them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from corrigenda.abilities.items import read_items
from corrigenda.metrics.metric import RunRecords
from corrigenda.metrics.registry import evaluate
from tests.run.conftest import Do, make

DATA = Path(__file__).parents[3] / "shared" / "data" / "downstream"

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="files of public tasks are not part of this repository"
)
SIZES = {"cola": 644, "mmlu": 1516, "mrpc": 258, "rte": 262, "sst2": 856}


def file(kind: str) -> Path:
    return DATA / f"glue_eval_{kind}.jsonl"


@pytest.mark.parametrize("kind", SIZES)
def test_every_record_is_read(kind: str) -> None:
    items = read_items(file(kind), kind)  # type: ignore[arg-type]  # of the table
    assert len(items) == SIZES[kind]
    answers = Counter(one.answer for one in items)
    assert set(answers) == set(range(len(items[0].choices)))


@pytest.mark.parametrize("legacy", [False, True], ids=["ours", "legacy"])
@pytest.mark.parametrize("kind", SIZES)
def test_every_record_can_be_generated(kind: str, legacy: bool) -> None:
    items = read_items(file(kind), kind, form="generated", legacy=legacy)  # type: ignore[arg-type]  # of the table
    assert len(items) == SIZES[kind]
    assert {one.max_new_tokens for one in items} <= {1, 3}
    assert all(one.expected == ((one.choices[one.answer],),) for one in items)


@pytest.mark.slow
def test_a_model_is_asked_them_before_and_after(do: Do) -> None:
    tasks = [{"name": one, "kind": one, "file": str(file(one)), "limit": 20} for one in SIZES]
    tasks += [
        {**one, "name": f"{one['name']}_said", "form": "generated", "shots": 10} for one in tasks
    ]
    recorded = do(make(data={"name": "pocketedit", "limit": 1}, health={"tasks": tasks}))
    found = {one.metric: one for one in evaluate(RunRecords(recorded.rows, recorded.measurements))}
    for kind in ("cola", "sst2"):
        assert found[f"task_accuracy/{kind}@rank"].n >= 15
    assert 0 < found["task_accuracy@rank"].value < 1
    assert found["task_retention@rank"].value > 0
    said = [row for row in recorded.rows if row.role.endswith("_said") and not row.skipped]
    assert {row.kind for row in said} >= {"cola_said", "sst2_said"}
    assert found["task_score@greedy"].n == len(said)
    assert found["task_f1/cola_said@greedy"].n >= 15
