"""`edit --stream`: facts of a file in batches, a folder to go on from, facts taken out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import corrigenda
from tests.support.streams import facts
from tests.support.tiny_on_disk import Run

METHOD = ("-m", "grace", "--layer", 1, "--set", "steps=30", "--set", "radius=0.3")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Five facts, one a line."""
    path = tmp_path / "facts.jsonl"
    rows = [{"prompt": one.prompt, "target": one.target} for one in facts(5)]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


def test_a_stream_is_kept_gone_on_from_and_saved(
    run: Run, model: Path, file: Path, tmp_path: Path
) -> None:
    command = ("edit", model, "--facts", file, "--stream", 2, "--folder", tmp_path / "s", *METHOD)
    ran = run(*command, "--json", "-o", tmp_path / "all.safetensors")
    assert (ran.json["facts"], ran.json["batches"]) == (5, 3)
    assert sum(ran.json["statuses"].values()) == 5
    assert ran.code == int(ran.json["holding"] < 5)
    again = run(*command, "--json", "--without", 3, "-o", tmp_path / "fewer.safetensors")
    # Nothing is edited again.
    assert again.json["seconds"] == ran.json["seconds"]
    assert again.json["taken_out"] == [3]
    assert again.json["wanted"] == 4
    whole, fewer = (
        corrigenda.load_patch(tmp_path / f"{name}.safetensors") for name in ("all", "fewer")
    )
    assert len(whole.header.facts) == 5
    assert [fact["prompt"] for fact in fewer.header.facts] == [
        one.prompt for index, one in enumerate(facts(5)) if index != 3
    ]
    shown = run(*command)
    assert "Taken out: 1 facts" in shown.out
    assert "of 4 facts hold now" in shown.out


def test_options_that_do_not_go_together_are_refused(run: Run, model: Path, file: Path) -> None:
    for words, message in (
        (("The sky is", "-t", "red", "--stream", 2), "reads its facts from a file"),
        (("--facts", file, "--folder", "x"), "are for a stream"),
        (("--facts", file, "--without", 1), "are for a stream"),
        (("--facts", file, "--stream", 2, "--transform", "prune"), "does not go with --stream"),
        (("--facts", file, "--stream", 2), "edits of rome cannot be streamed"),
    ):
        ran = run("edit", model, *words)
        assert ran.code == 2
        assert "CG502" in ran.err
        assert message in ran.err
