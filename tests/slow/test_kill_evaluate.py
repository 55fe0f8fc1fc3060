"""Killing `corrigenda evaluate` at random moments loses no row and repeats none.

`CORRIGENDA_KILLS` sets how often it is killed (default 30).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from corrigenda.rows import Row
from corrigenda.run import store
from tests.support.tiny_on_disk import save_tiny

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("CORRIGENDA_KILLS", "30"))
SEED = 20260201
RECIPE = """
title = "a tiny model"
model = "{model}"
metrics = ["reliability@greedy"]
methods = [
    {{name = "ft-m", options = {{layer = 1, epochs = 2}}}},
    {{name = "ft-l", options = {{layer = 1, epochs = 2}}}},
]

[benchmark]
name = "pocketedit"
limit = {cases}
options = {{world = "small"}}

[regime]
{regime}

[ask]
max_new_tokens = 4
without = ["fluency", "locality/distracted_neighborhood"]
"""


# Some edits of the sequences are taken back, and are so again when a run goes on.
HEALTH = """
[health]
texts = ["Rome is a city in Italy.", "The sea is blue.", "Bread is made of flour."]
rollback_above = 1.005
"""


def start(recipe: Path, folder: Path, cache: Path) -> subprocess.Popen[bytes]:
    arguments = ["evaluate", str(recipe), "--out", str(folder), "--json"]
    return subprocess.Popen(
        [sys.executable, "-m", "corrigenda", *arguments],
        env={**os.environ, "CORRIGENDA_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def rows_of(folder: Path) -> dict[str, list[Row]]:
    return {name: store.load(name, folder).rows for name in store.list_ids(folder)}


@pytest.mark.parametrize(
    "regime",
    ['kind = "single"', f'kind = "sequential"\ncheckpoints = [3]\nlength = 6\n{HEALTH}'],
    ids=["single", "sequential"],
)
def test_killed_evaluation_ends_with_the_rows_of_an_uninterrupted_one(
    regime: str, tmp_path: Path
) -> None:
    model = save_tiny(tmp_path / "model")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(model=model.as_posix(), regime=regime, cases=12))
    begin = time.perf_counter()
    assert start(recipe, tmp_path / "whole", tmp_path / "cache").wait() == 0
    whole = time.perf_counter() - begin
    expected = rows_of(tmp_path / "whole")
    assert len(expected) == 2
    undone = {"rolled_back=1" in row.tags for rows in expected.values() for row in rows}
    assert undone == ({False, True} if "rollback" in regime else {False})

    draw = random.Random(SEED)
    wanted, killed, ended = (KILLS + 1) // 2, 0, 0
    folder, cache = tmp_path / "killed0", tmp_path / "cache0"
    while killed < wanted:
        process, begin = start(recipe, folder, cache), time.perf_counter()
        try:
            assert process.wait(timeout=draw.uniform(0.2, 0.9) * whole) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
            for name, rows in rows_of(folder).items():
                # Units are done in order, so what is there is the beginning of the whole.
                assert rows == expected[name][: len(rows)]
        else:
            ended += 1
            assert ended <= 2 * wanted, "runs end too fast to be killed"
            # What is left of a resumed run takes less than a whole one, and machines vary.
            whole = max(0.7 * whole, time.perf_counter() - begin)
            assert rows_of(folder) == expected
            folder, cache = tmp_path / f"killed{ended}", tmp_path / f"cache{ended}"
    assert start(recipe, folder, cache).wait() == 0
    assert rows_of(folder) == expected
