"""What holds for every transform: pure, deterministic, traceable, neutral on the empty patch."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
import torch

import corrigenda
from corrigenda.errors import BadConfig, NotApplied, NotExportable, WrongBase
from corrigenda.facts import Fact
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.sites import Site
from corrigenda.methods.rome.editor import Rome
from corrigenda.patch import Dense, Rows, WeightPatch, header_for, load_patch
from corrigenda.patch.changes import dense
from corrigenda.testing.tiny import tiny_model
from corrigenda.transforms.anchor_norm import AnchorNorm
from corrigenda.transforms.clip_norm import ClipNorm
from corrigenda.transforms.keep_largest import KeepLargest
from corrigenda.transforms.prune_spectrum import PruneSpectrum
from corrigenda.transforms.registry import TRANSFORMS, parse_transform
from tests.support.locating import FACTS, PLAIN, moments
from tests.transforms.conftest import KINDS, SITES, patch_of

ALL = (
    KeepLargest(keep=0.03),
    PruneSpectrum(base=2.0),
    ClipNorm(relative=0.01),
    ClipNorm(absolute=0.2, of="rows"),
    ClipNorm(relative=0.02, of="columns"),
    AnchorNorm(),
)
each = pytest.mark.parametrize("step", ALL, ids=lambda step: f"{step.name}-{len(str(step))}")


@each
@pytest.mark.parametrize("kind", KINDS)
def test_model_and_patch_stay_as_they_are_and_results_repeat(step, kind, lm) -> None:
    patch = patch_of(lm, kind, scale=3.0)
    digest, content, header = lm.digest(), patch.digest(), patch.header.to_json()
    torch.manual_seed(1)
    first = step(patch, lm)
    torch.manual_seed(2)
    assert first == step(patch, lm)
    assert lm.digest() == digest
    assert not lm.patches
    assert (patch.digest(), patch.header.to_json()) == (content, header)
    assert first.digest() != content
    assert set(first.sites) == set(SITES)


@each
def test_the_empty_patch_comes_back(step, lm) -> None:
    empty = WeightPatch({}, header_for(lm, method="test"))
    assert step(empty, lm) is empty


@pytest.mark.parametrize("step", [s for s in ALL if not isinstance(s, AnchorNorm)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_all_forms_give_the_same_change(step, kind, lm) -> None:
    """A low-rank or row change is transformed as the full matrix that it stands for."""
    patch = patch_of(lm, kind, scale=3.0)
    full = WeightPatch({s: Dense(dense(c)) for s, c in patch.changes.items()}, patch.header)
    for site in SITES:
        one, two = (dense(step(p, lm).changes[site]) for p in (patch, full))
        assert (one - two).norm() <= 1e-9 * two.norm()


@pytest.mark.parametrize("step", [s for s in ALL if not isinstance(s, KeepLargest)], ids=str)
def test_factors_stay_factors_and_rows_stay_rows(step, lm) -> None:
    for change in step(patch_of(lm, "lowrank", scale=3.0), lm).changes.values():
        assert isinstance(change, LowRank)
        assert change.rank <= 3
    if not isinstance(step, AnchorNorm):
        for change in step(patch_of(lm, "rows", scale=3.0), lm).changes.values():
            assert isinstance(change, Rows)


def test_header_tells_the_chain_and_survives_the_file(lm, tmp_path) -> None:
    patch = patch_of(lm, "lowrank", scale=3.0)
    once = PruneSpectrum()(patch, lm)
    twice = KeepLargest(keep=0.5)(once, lm)
    assert twice.header.method == "test > prune > rect"
    assert twice.header.facts == patch.header.facts
    assert twice.header.base_digest == patch.header.base_digest
    first, second = twice.header.notes["transforms"]
    assert (first["name"], first["of"]) == ("prune", patch.digest())
    assert (second["name"], second["of"]) == ("rect", once.digest())
    assert second["options"] == {"keep": 0.5}
    assert set(second["report"]) == {str(site) for site in SITES}
    assert load_patch(twice.save(tmp_path / "patch.safetensors")) == twice
    with twice.apply(lm):
        assert len(lm.patches) == 1
    part = (patch_of(lm, "lowrank", seed=5) + twice).header.parts[1]
    assert part.method == "test > prune > rect"
    assert len(part.notes["transforms"]) == 2


def test_a_transformed_composition_is_no_longer_its_parts(lm) -> None:
    one, two = patch_of(lm, "lowrank"), patch_of(lm, "dense", seed=7)
    both = one + two
    new = KeepLargest(keep=0.5)(both, lm)
    assert new.header.parts == ()
    assert [part["digest"] for part in new.header.notes["parts"]] == [one.digest(), two.digest()]
    with new.apply(lm), one.apply(lm):
        assert len(lm.patches) == 2


def test_patches_of_other_models_active_ones_and_other_kinds_are_refused(lm) -> None:
    patch, step = patch_of(lm, "dense"), KeepLargest()
    with pytest.raises(WrongBase, match="CG401"):
        step(patch, tiny_model("llama", seed=1, dtype=torch.float64))
    with patch.apply(lm), pytest.raises(NotApplied, match="CG406"):
        step(patch, lm)
    with patch.apply(lm):
        on_top = patch_of(lm, "rows", seed=3)
        assert step(on_top, lm).header.prerequisites == (patch.digest(),)
    with pytest.raises(WrongBase, match="made on top"):
        step(on_top, lm)


class NoWeights:
    """A patch of another kind."""

    def __init__(self, header) -> None:
        self.header = header


def test_a_patch_that_changes_no_weights_is_refused(lm) -> None:
    other = NoWeights(header_for(lm, method="prompts"))
    with pytest.raises(NotExportable, match="CG405"):
        KeepLargest()(other, lm)
    with pytest.raises(NotExportable, match="CG405"):
        corrigenda.transform(other, lm, "rect")


@pytest.mark.parametrize("name", TRANSFORMS.names())
def test_every_transform_has_a_card(name) -> None:
    module = Path(sys.modules[TRANSFORMS.get(name).__module__].__file__)
    _, matter, text = module.with_suffix(".md").read_text(encoding="utf-8").split("+++\n", 2)
    card = tomllib.loads(matter)
    assert {"name", "title", "family", "paper", "url", "rank"} <= set(card)
    assert card["name"] == name
    assert text.lstrip().startswith("# ")
    assert all(f"`{option}`" in text for option in TRANSFORMS.get(name).model_fields)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("step", [KeepLargest(keep=0.3), PruneSpectrum(base=20.0)], ids=str)
def test_report_shows_by_how_much_a_constraint_is_missed(step, family) -> None:
    """ROME's equality at the clean key, dW k = r, and ||dW' k - r|| / ||r|| afterwards."""
    lm = tiny_model(family, dtype=torch.float64)
    site = Site(2)
    lm.write(site, lm.weight(site) * 0.05)
    editor = Rome(layer=2, variant="rome", contexts=PLAIN, steps=6, learning_rate=1.0, clamp=50.0)
    state = moments(lm, [2])
    patch = editor.edit(lm, FACTS[:1], state).patch
    constraint = editor.constraints(lm, FACTS[:1], state)[site]
    wanted = constraint.values - lm.weight(site) @ constraint.keys
    torch.testing.assert_close(dense(patch.changes[site]) @ constraint.keys, wanted)
    new = step(patch, lm)
    missed = dense(new.changes[site]) @ constraint.keys - wanted
    entry = new.header.notes["transforms"][-1]["report"][str(site)]
    expected = float(missed.norm() / wanted.norm())
    assert expected > 0.01
    assert entry["residual"] == [pytest.approx(expected, rel=1e-4)]
    spoken = any(note.startswith(f"{step.name}: ") for note in new.header.notes["notices"])
    assert spoken is (expected > 0.5)


def test_a_patch_without_facts_has_no_residuals(lm) -> None:
    patch = patch_of(lm, "dense", facts=0)
    for step in ALL:
        report = step(patch, lm).header.notes["transforms"][0]["report"]
        assert all(entry["residual"] == [] for entry in report.values())


def test_names_and_options() -> None:
    assert parse_transform("rect") == KeepLargest()
    assert parse_transform("rect:keep=0.2") == KeepLargest(keep=0.2)
    assert parse_transform("clip-norm: absolute=1, of=rows") == ClipNorm(absolute=1.0, of="rows")
    assert parse_transform("prune:base=1.2,restraint=linear") == PruneSpectrum(
        base=1.2, restraint="linear"
    )
    assert {TRANSFORMS.get(name).name for name in TRANSFORMS.names()} == set(TRANSFORMS.names())
    for text, match in (
        ("rectt", 'no transform "rectt"(.|\n)*Did you mean "rect"'),
        ("rect:keep", "is not OPTION=VALUE"),
        ("rect:kep=1", 'Did you mean "keep"'),
        ("rect:keep=1.5", "keep: "),
        ("clip-norm", "either `relative` or `absolute`"),
        ("clip-norm:relative=1,absolute=1", "either `relative` or `absolute`"),
        ("prune:base=1", "base: "),
    ):
        with pytest.raises(BadConfig, match=f"CG502(.|\n)*{match}"):
            parse_transform(text)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path))


@pytest.mark.usefixtures("cache")
@pytest.mark.filterwarnings("ignore:.*(not converged|clamped|by more than half)")
def test_edit_and_correct_take_transforms() -> None:
    lm = tiny_model("llama")
    fact = Fact(prompt="The Space Needle is in", subject="Space Needle", target="Rome")
    options = {"layer": 2, "use_moment": False, "steps": 5, "contexts": {"prefixes": [""]}}
    plain = corrigenda.edit(lm, fact, "rome", **options)
    new = corrigenda.edit(
        lm, fact, "rome", transforms=["clip-norm:absolute=0.01", KeepLargest(keep=0.5)], **options
    )
    assert new.header.method == "rome > clip-norm > rect"
    assert new == corrigenda.transform(plain, lm, ClipNorm(absolute=0.01), "rect:keep=0.5")
    assert new.norms()[Site(2)] <= 0.01
    correction = corrigenda.correct(lm, fact, "rome", transforms=["rect:keep=0.5"], **options)
    assert correction.patch.header.method == "rome > rect"
    with pytest.raises(BadConfig, match="CG502"):
        corrigenda.edit(lm, fact, "rome", transforms=["pruned"], **options)
