"""Two `corrigenda evaluate` on one folder at once lose no row, also when one of them is killed.

`CORRIGENDA_PAIRS` sets the number of pairs (default 20).
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from tests.slow.test_kill_evaluate import RECIPE, rows_of, start
from tests.support.tiny_on_disk import save_tiny

pytestmark = pytest.mark.slow

PAIRS = int(os.environ.get("CORRIGENDA_PAIRS", "20"))
SEED = 20261202


def test_pairs_of_simultaneous_runs_lose_nothing(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    recipe = tmp_path / "recipe.toml"
    regime = 'kind = "single"'
    recipe.write_text(RECIPE.format(model=model.as_posix(), regime=regime, cases=8))
    begin = time.perf_counter()
    assert start(recipe, tmp_path / "whole", tmp_path / "cache").wait() == 0
    whole = time.perf_counter() - begin
    expected = rows_of(tmp_path / "whole")
    assert len(expected) == 2

    draw = random.Random(SEED)
    for pair in range(PAIRS):
        folder, cache = tmp_path / f"runs{pair}", tmp_path / f"cache{pair}"
        first = start(recipe, folder, cache)
        time.sleep(draw.choice((0.0, 0.3 * whole * draw.random())))
        second = start(recipe, folder, cache)
        if pair % 2:
            time.sleep(draw.uniform(0.2, 0.9) * whole)
            first.kill()
            first.wait()
        else:
            assert first.wait(timeout=600) == 0
        assert second.wait(timeout=600) == 0
        assert rows_of(folder) == expected
        assert not list(folder.glob("*/parts"))
        assert not list(folder.glob("*/lock.*"))
