"""Every script in `examples/` runs on the pocket model and does what its first line says."""

from __future__ import annotations

import importlib
from importlib.resources import files
from pathlib import Path

import pytest

from corrigenda.prompt_answers import Role

EXAMPLES = Path(__file__).parents[1] / "examples"

pocket = pytest.mark.skipif(
    not files("corrigenda").joinpath("pocket", "pocket", "config.json").is_file(),
    reason="no trained pocket model in this checkout",
)


def script(name: str) -> object:
    return importlib.import_module(f"examples.{name}")


@pytest.fixture(autouse=True)
def _cache_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cache for all examples of a run, apart from the user's."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("CORRIGENDA_CACHE", str(folder))


def test_each_example_is_short_and_has_a_test() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f'script("{path.stem}")' in tests
        assert len(path.read_text(encoding="utf-8").splitlines()) < 60


@pocket
def test_correct_a_fact() -> None:
    correction = script("correct_a_fact").main()
    assert correction.succeeded
    assert correction.share(Role.NEIGHBOUR) >= 0.5


@pocket
def test_save_load_undo() -> None:
    seen = script("save_load_undo").main()
    assert seen["before"].startswith("Paris")
    assert seen["with"].startswith("Rome")
    assert seen["after"] == seen["before"]
    assert seen["digest after"] == seen["digest before"]


@pocket
def test_batch_memit() -> None:
    correction = script("batch_memit").main()
    assert correction.share(Role.PROMPT) >= 0.75
    assert all(change.rank <= 8 for change in correction.changes)


@pocket
def test_sweep_layers() -> None:
    found = script("sweep_layers").main(range(2, 4))
    assert list(found) == [2, 3]
    assert all(result.succeeded for result in found.values())


@pocket
@pytest.mark.slow
def test_sweep_of_all_layers() -> None:
    found = script("sweep_layers").main()
    assert [result.config["layer"] for result in found.values()] == list(range(8))
    assert found[3].succeeded


@pocket
def test_wrap_a_model() -> None:
    seen = script("wrap_a_model").main()
    assert "Paris" in seen["before"]
    assert "Rome" in seen["with"]
    assert seen["after"] == seen["before"]


@pocket
def test_assess_a_patch() -> None:
    own, other = script("assess_a_patch").main()
    assert own.succeeded
    assert own.facts[0].subject == "France"
    assert len(other.facts) == 1
    assert other.answers[0].before == "Madrid"


@pocket
def test_trace_a_fact() -> None:
    drawn = script("trace_a_fact").main()
    assert "early site: block" in drawn
    assert "France" in drawn


@pocket
def test_own_editor() -> None:
    result = script("own_editor").main()
    assert result.method == "silence"
    assert result.changes[0].rank == 1


@pocket
def test_export_lora() -> None:
    pytest.importorskip("peft", reason="the adapter is read by peft")
    ours, theirs = script("export_lora").main()
    assert ours.startswith("Rome")
    assert theirs.strip().startswith("Rome")
