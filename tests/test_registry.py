"""Methods by name, cards and presets."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from corrigenda.errors import BadConfig, UnknownMethod
from corrigenda.methods import presets
from corrigenda.methods.presets import build_editor
from corrigenda.methods.registry import METHODS
from corrigenda.registry import plug_ins


def test_names_come_from_the_cards() -> None:
    assert {"rome", "memit", "emmet"} <= set(METHODS.names())


def test_every_card_has_what_the_comparison_table_shows() -> None:
    columns = {"name", "title", "family", "training", "batch", "sequential", "area", "parameters"}
    for name in METHODS.names():
        card = METHODS.card(name)
        assert columns <= set(card), name
        assert card["name"] == name
        assert METHODS.card_text(name).startswith("# ")


def test_a_card_agrees_with_its_editor() -> None:
    for name in METHODS.names():
        editor, card = build_editor(name), METHODS.card(name)
        assert editor.name == name
        assert card["batch"] == editor.supports.batch
        assert card["sequential"] == editor.supports.sequential
        # IKE takes demonstrations from a training set, and trains nothing.
        assert bool(card["training"]) == (editor.requires.training_set and name != "ike")


def test_unknown_method_names_the_closest() -> None:
    with pytest.raises(UnknownMethod, match=r'CG501.*no method "romee"(.|\n)*Did you mean "rome"'):
        METHODS.card("romee")


@pytest.mark.parametrize(
    ("model_name", "found"),
    [
        ("gpt2-xl", "gpt2-xl"),
        ("openai-community/gpt2-xl", "gpt2-xl"),
        ("EleutherAI/gpt-j-6B", "gpt-j-6B"),
        ("/models/GPT2-XL/", "gpt2-xl"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3-8b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b"),
        ("Qwen/Qwen2.5-7B", "qwen2.5-7b"),
        ("gpt2", None),
        ("codellama/CodeLlama-2-7b-hf", None),
        ("meta-llama/Llama-2-70b-hf", None),
        ("", None),
    ],
)
def test_preset_of_a_model(model_name: str, found: str | None) -> None:
    preset = presets.preset("memit", model_name)
    assert (preset.model if preset else None) == found


def test_every_preset_makes_an_editor() -> None:
    for name in METHODS.names():
        for preset in presets.presets(name):
            editor = build_editor(name, preset.model)
            assert preset.source
            assert preset.options
            assert editor == METHODS.get(name)(**preset.options)


def test_options_go_before_the_preset() -> None:
    assert build_editor("rome", "gpt2-xl").layer == 17
    assert build_editor("rome", "gpt2-xl", layer=3).layer == 3
    assert build_editor("rome").layer is None


def test_unknown_option_names_the_closest() -> None:
    with pytest.raises(BadConfig, match=r'CG502(.|\n)*layr(.|\n)*Did you mean "layer"'):
        build_editor("rome", layr=3)


def test_a_bad_preset_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "pocket.toml"
    bad.write_text("layer = 3\n")
    with pytest.raises(BadConfig, match=r"pocket\.toml"):
        presets.read_preset(bad)


def test_names_cards_and_presets_need_no_torch() -> None:
    code = (
        "import sys; from corrigenda.methods import presets;"
        "from corrigenda.methods.registry import METHODS;"
        "[(METHODS.card(n), presets.presets(n)) for n in METHODS.names()];"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_plug_in_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nothing_method.py").write_text(
        textwrap.dedent(
            """
            from typing import ClassVar
            from corrigenda.editor import Edit, Editor

            class Nothing(Editor):
                name: ClassVar[str] = "nothing"

                def sites(self, lm):
                    return ()

                def edit(self, lm, facts, state=None):
                    return Edit(None, state)
            """
        )
    )
    (tmp_path / "nothing_method.md").write_text('+++\nname = "nothing"\n+++\n# Nothing\n')
    info = tmp_path / "nothing-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nothing\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[corrigenda.methods]\nnothing = nothing_method:Nothing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plug_ins.cache_clear()
    try:
        assert "nothing" in METHODS.names()
        assert METHODS.card("nothing")["name"] == "nothing"
        assert METHODS.card_text("nothing") == "# Nothing\n"
        assert presets.presets("nothing") == ()
        assert "nothing_method" not in sys.modules
        assert type(build_editor("nothing", "pocket")).__name__ == "Nothing"
    finally:
        monkeypatch.undo()
        plug_ins.cache_clear()
