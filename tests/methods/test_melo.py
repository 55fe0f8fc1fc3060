"""MELO: which key switches on which block, what a block adds, and nothing for anybody else."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import corrigenda as cg
from corrigenda.almanac.exam import load_exam
from corrigenda.errors import BadConfig, NonFinite, UnknownSite
from corrigenda.exports.peft import export_peft
from corrigenda.facts import Fact
from corrigenda.lm.decoding import answer, score
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, Tokens
from corrigenda.lm.spans import encode
from corrigenda.methods.melo.clusters import (
    IN_CONFLICT,
    JOINED,
    OPENED,
    REPLACED,
    ClusterDatabase,
    ClusterIndex,
    place_fact,
)
from corrigenda.methods.melo.editor import Melo, MeloPatch
from corrigenda.methods.melo.training import new_block
from corrigenda.methods.presets import build_editor
from corrigenda.patch import load_patch
from corrigenda.testing.tiny import tiny_model
from tests.support.routing import FACTS, OTHERS, PROMPTS, generated, logits, uncached

A, B = (1, 2), (3,)


@cache
def model(family: str = "llama", dtype: torch.dtype = torch.float32) -> LanguageModel:
    return tiny_model(family, dtype=dtype)


def melo(**options: object) -> Melo:
    usual = {
        "index": "1.mlp.up",
        "targets": ("2.mlp.up", "3.mlp.down"),
        "steps": 3,
        "radius": 0.2,
        "learning_rate": 0.05,
        "batch_size": 2,
    }
    return Melo(**{**usual, **options})


class Grown:
    """A database that facts are put into, one after another."""

    def __init__(self) -> None:
        self.database = ClusterDatabase()
        self.acts: list[int] = []

    def add(self, key: list[float], label: tuple[int, ...], *, is_first: bool = False) -> None:
        point = torch.tensor(key)
        one = place_fact(self.database, point, label, 1.0, 1e-4, is_first=is_first)
        number = len(self.acts) + 1
        self.database.apply(point, label, 1.0, 1e-4, one.act, number, one.root)
        self.acts.append(one.act)

    def route(self, *queries: list[float]) -> list[int]:
        blocks = torch.arange(len(self.acts))
        index = ClusterIndex(self.database, blocks)
        return index.find_blocks(torch.tensor(queries)).tolist()


def test_a_first_batch_opens_a_cluster_for_each_row() -> None:
    grown = Grown()
    grown.add([0.0, 0.0], A, is_first=True)
    grown.add([0.1, 0.0], A, is_first=True)
    assert grown.acts == [OPENED, OPENED]
    assert grown.route([0.0, 0.0], [0.1, 0.0], [9.0, 9.0]) == [0, 1, -1]


def test_the_same_label_joins_and_the_nearest_key_decides() -> None:
    grown = Grown()
    grown.add([0.0, 0.0], A)
    grown.add([1.6, 0.0], A)
    grown.add([5.0, 0.0], A)
    assert grown.acts == [OPENED, JOINED, OPENED]
    (cluster, _) = grown.database.clusters
    assert cluster.centre.tolist() == pytest.approx([0.8, 0.0])
    assert cluster.radius == 1.0
    assert grown.route([0.7, 0.0], [0.9, 0.0], [1.9, 0.0]) == [0, 1, -1]
    grown.add([-0.9, 0.0], A)
    (cluster, _) = grown.database.clusters
    assert cluster.radius == pytest.approx(float(2.5 / 3 + 0.7 / 3 + 0.3), abs=0.3)
    own = [grown.database.keys[point] for point in cluster.points]
    assert all(float((key - cluster.centre).norm()) <= cluster.radius for key in own)


@pytest.mark.parametrize("distance", [0.3, 1.0, 1.9])
def test_a_conflict_halves_the_distance(distance: float) -> None:
    grown = Grown()
    grown.add([0.0, 0.0], A)
    grown.add([distance, 0.0], B)
    assert grown.acts == [OPENED, IN_CONFLICT]
    radii = [cluster.radius for cluster in grown.database.clusters]
    assert sum(radii) == pytest.approx(float(torch.tensor(distance)), abs=1e-9)
    assert grown.route([0.0, 0.0], [distance, 0.0]) == [0, 1]


def test_keys_outside_a_shrunk_cluster_are_forgotten() -> None:
    grown = Grown()
    grown.add([0.0, 0.0], A)
    grown.add([1.6, 0.0], A)
    grown.add([0.8, 0.6], B)
    assert grown.acts == [OPENED, JOINED, IN_CONFLICT]
    first, _ = grown.database.clusters
    assert grown.database.forgotten == [0, 1]
    assert first.points == []
    assert grown.route([0.0, 0.0], [0.8, -0.1], [0.8, 0.6]) == [-1, -1, 2]
    grown.add([0.8, -0.1], A)
    assert grown.acts[-1] == JOINED
    assert grown.route([0.8, -0.1]) == [3]


def test_a_prompt_edited_again_takes_the_place_of_its_cluster() -> None:
    grown = Grown()
    grown.add([0.0, 0.0], A)
    grown.add([0.0, 0.0], B)
    assert grown.acts == [OPENED, REPLACED]
    assert grown.route([0.0, 0.0], [0.9, 0.0], [1.1, 0.0]) == [1, 1, -1]


def test_labels_are_compared_token_by_token() -> None:
    grown = Grown()
    grown.add([0.0, 0.0], (1, 2))
    grown.add([1.0, 0.0], (2, 1))
    assert grown.acts == [OPENED, IN_CONFLICT]


def untrained(editor: Melo, patch: MeloPatch) -> MeloPatch:
    """The same keys with new blocks."""
    fresh = {
        name: torch.zeros_like(tensor) if name.startswith("b/") else tensor
        for name, tensor in patch.stored.items()
    }
    return MeloPatch(fresh, patch.header)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_block_changes_no_bit(dtype: torch.dtype) -> None:
    lm, editor = model("gpt2", dtype), melo()
    block = new_block(32, 8, 2, torch.Generator().manual_seed(0))
    assert not block.b.any()
    assert 0.1 < float(block.a.abs().max()) <= 32**-0.5
    base = logits(lm)
    patch = editor.edit(lm, FACTS).patch
    with untrained(editor, patch).apply(lm):
        assert torch.equal(logits(lm), base)
    with patch.apply(lm):
        after = logits(lm)
    assert [torch.equal(after[row], base[row]) for row in range(len(PROMPTS))] == [False] * 3 + [
        True
    ] * len(OTHERS)


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi3"])
def test_a_row_with_a_block_is_plain_lora(family: str, tmp_path) -> None:
    lm, editor = model(family), melo(gain=3.0)
    patch = editor.edit(lm, FACTS).patch
    assert isinstance(patch, MeloPatch)
    assert patch.num_blocks == 2
    with patch.apply(lm):
        routed = logits(lm)
    for number, rows in ((0, (0, 1)), (1, (2,))):
        alone = patch.block(number)
        assert {change.rank for change in alone.changes.values()} == {2}
        with alone.apply(lm, mode="runtime"):
            plain = logits(lm)
        for row in rows:
            torch.testing.assert_close(routed[row], plain[row], rtol=1e-4, atol=1e-4)
    assert (export_peft(patch.block(0), lm, tmp_path) / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_padding_company_and_cache_make_no_difference(family: str) -> None:
    lm = model(family)
    patch = melo(steps=8).edit(lm, FACTS).patch
    rows = [encode(lm, prompt).ids for prompt in PROMPTS]
    with patch.apply(lm):
        together = logits(lm)
        for row, prompt in enumerate(PROMPTS):
            torch.testing.assert_close(logits(lm, [prompt])[0], together[row], rtol=1e-4, atol=1e-4)
        left = lm.logits(Tokens.pad(rows, 0, "left"))[:, -1]
        torch.testing.assert_close(left, together, rtol=1e-4, atol=1e-4)
        assert generated(lm, PROMPTS, 4) == [uncached(lm, prompt, 4) for prompt in PROMPTS]


def test_a_score_goes_the_way_the_prompt_decides() -> None:
    lm = model()
    patch = melo().edit(lm, FACTS).patch
    final = [losses[-1] for losses in patch.header.notes["losses"]]
    with patch.apply(lm):
        scores = score(lm, [(fact.prompt, fact.target) for fact in FACTS])
    assert [-one.mean for one in scores] == pytest.approx(final, rel=1e-3)


def test_training_one_block_leaves_the_others_alone() -> None:
    lm, editor = model(), melo(batch_size=1)
    first = editor.edit(lm, FACTS[:1]).patch
    alone = editor.edit(lm, FACTS[1:2]).patch
    with first.apply(lm):
        digest = first.digest()
        second = editor.edit(lm, FACTS[1:2]).patch
        assert first.digest() == digest
    for name in ("a/2.mlp.up", "b/2.mlp.up", "a/3.mlp.down", "b/3.mlp.down"):
        assert torch.equal(second.stored[name], alone.stored[name])
    together = editor.edit(lm, FACTS[:2]).patch
    for name in ("a/2.mlp.up", "b/3.mlp.down"):
        assert torch.equal(together.stored[name][0], first.stored[name][0])
        assert torch.equal(together.stored[name][1], alone.stored[name][0])


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_undo_removes_exactly_one_edit(gone: int) -> None:
    lm, editor = model(), melo()
    base = logits(lm)
    applied = [editor.edit(lm, [FACTS[0]]).patch.apply(lm)]
    applied += [editor.edit(lm, [fact]).patch.apply(lm) for fact in FACTS[1:]]
    full = logits(lm)
    applied[gone].revert()
    after = logits(lm)
    for row in range(len(PROMPTS)):
        wanted = base if row == gone else full
        torch.testing.assert_close(after[row], wanted[row], rtol=1e-5, atol=1e-5)
        if row == gone or row >= len(FACTS):
            assert torch.equal(after[row], base[row])
    lm.patches.clear()  # type: ignore[attr-defined]
    assert torch.equal(logits(lm), base)


def test_what_an_edit_made_forgotten_comes_back_with_it() -> None:
    lm, wide = model(), melo(radius=1e4, batch_size=1)
    again = Fact(prompt=FACTS[1].prompt, target="Berlin")
    base = logits(lm)
    one = wide.edit(lm, FACTS[:1]).patch
    with one.apply(lm):
        with_one = logits(lm)
        joined = wide.edit(lm, [Fact(prompt="Rome", target=FACTS[0].target, name="Rome's")]).patch
        assert joined.header.notes["acts"] == ["joined"]
        with joined.apply(lm):
            before = logits(lm)
            two = wide.edit(lm, [again]).patch
            assert two.header.notes["acts"] == ["in conflict"]
            notices = two.header.notes["notices"]
            assert any("out of reach" in notice for notice in notices)
            with two.apply(lm):
                assert not torch.equal(logits(lm), before)
            assert torch.equal(logits(lm), before)
        assert torch.equal(logits(lm), with_one)
    assert torch.equal(logits(lm), base)


def test_a_loaded_patch_takes_the_same_routes(tmp_path) -> None:
    lm = model()
    patch = melo().edit(lm, FACTS).patch
    loaded = load_patch(patch.save(tmp_path / "patch.safetensors"))
    with patch.apply(lm):
        before = logits(lm)
    with loaded.apply(lm):
        assert torch.equal(logits(lm), before)


def test_the_index_comes_before_every_target() -> None:
    for index, targets in (
        ("2.mlp.up", ("1.mlp.up",)),
        ("2.mlp.up", ("2.mlp.up",)),
        ("2.mlp.up", ("3.mlp.up", "2.mlp.gate")),
        ("2.mlp.down", ("2.attn.q",)),
    ):
        with pytest.raises(BadConfig, match=r"CG502(.|\n)*before the index layer"):
            Melo(index=index, targets=targets)
    assert Melo(index="2.attn.out", targets=("2.mlp.down",)).index == "2.attn.out"
    with pytest.raises(BadConfig, match=r"CG502(.|\n)*index"):
        Melo(index="nowhere")
    lm = model()
    assert Melo().layers(lm) == (Site(2, "mlp.up"), (Site(3, "mlp.up"),))
    assert Melo().sites(lm) == ()
    with pytest.raises(BadConfig, match="CG502"):
        Melo(index="3.mlp.up").layers(lm)
    with pytest.raises(BadConfig, match="CG502"):
        Melo(targets=("0.mlp.up",)).layers(lm)
    with pytest.raises(UnknownSite, match="CG303"):
        melo(targets=("9.mlp.up",)).edit(lm, FACTS)


def test_the_learning_rate_decays_and_training_may_end_early() -> None:
    lm = model()
    whole = melo(steps=6).edit(lm, FACTS[:1]).patch.header.notes
    assert len(whole["losses"][0]) == 7
    assert whole["stop"] == ["steps"]
    early = melo(steps=40, stop_loss=50.0, learning_rate=0.1).edit(lm, FACTS[:1]).patch.header.notes
    if early["stop"] == ["loss"]:
        assert early["status"] == ["written"]
    slow = melo(steps=6, decay_every=1, decay=1e-6).edit(lm, FACTS[:1]).patch.header.notes
    assert slow["losses"][0][1] == pytest.approx(whole["losses"][0][1], rel=1e-4)
    assert slow["losses"][0][-1] == pytest.approx(slow["losses"][0][2], rel=1e-2)


def test_a_model_without_finite_losses_is_refused() -> None:
    lm = tiny_model("llama")
    lm.model.get_output_embeddings().weight.data.fill_(torch.nan)
    with pytest.raises(NonFinite, match=r"CG201(.|\n)*Space Needle"):
        melo().edit(lm, FACTS[:1])
    assert not lm.patches


def test_distances_are_those_of_the_index_layer() -> None:
    lm = model()
    facts = [
        Fact(prompt="a", target="b", paraphrases=("a", "In a"), neighbours=("The a",)),
        Fact(prompt="Rome", target="b"),
    ]
    found = melo().distances(lm, facts)
    assert found.paraphrases[0] == pytest.approx(0.0, abs=1e-4)
    assert len(found.paraphrases) == 2
    assert len(found.neighbours) == 1
    assert found.others[0] == pytest.approx(found.others[1])
    assert found.others[0] > 0.5


def test_on_the_pocket_model_a_block_carries_to_close_wordings() -> None:
    lm: LanguageModel = cg.load("pocket")
    cases = load_exam(edits=2, size=1, recall=1, seed=11).edits
    facts = [case.fact for case in cases]
    remaining = [
        text for case in cases for text in (*case.fact.neighbours[:3], *case.fact.same_subject[:3])
    ]
    before = answer(lm, remaining)
    with build_editor("melo", "pocket").edit(lm, facts).patch.apply(lm):
        said = answer(lm, [fact.prompt for fact in facts])
        after = answer(lm, remaining)
    assert said == [fact.target for fact in facts]
    assert sum(one == two for one, two in zip(before, after, strict=True)) >= len(remaining) - 1


def test_a_trial_leaves_the_clusters_as_they_were() -> None:
    grown = Grown()
    for point, label in (([0.0, 0.0], A), ([1.6, 0.0], A), ([9.0, 0.0], B)):
        grown.add(point, label)

    def shown() -> tuple[object, ...]:
        database = grown.database
        clusters = [
            (one.id, one.centre.tolist(), one.radius, one.points) for one in database.clusters
        ]
        nearest = [database.nearest(torch.tensor([x, 0.0]))[1] for x in (-1.0, 0.8, 5.0, 8.9)]
        return clusters, len(database.keys), list(database.forgotten), nearest

    before = shown()
    with grown.database.trial():
        grown.add([0.8, 0.6], B)
        grown.add([9.0, 0.0], A)
        grown.add([1.0, 0.0], A)
        assert shown() != before
        assert grown.database.forgotten
    assert shown() == before
    grown.add([0.8, 0.6], B)
    assert grown.acts[-1] == IN_CONFLICT
    assert grown.database.forgotten == [0, 1]
