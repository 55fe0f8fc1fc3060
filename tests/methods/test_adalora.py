"""AdaLoRA: the budget of directions, their scores, the penalty, and what is left in the patch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import corrigenda as cg
from corrigenda.engines.gradients import labelled_rows
from corrigenda.errors import BadConfig
from corrigenda.exports.peft import export_peft
from corrigenda.facts import Fact
from corrigenda.methods.lora.adapters import train
from corrigenda.methods.lora.editor import AdaLora
from corrigenda.patch.changes import dense
from tests.support.adapting import FACT, Snapshot, adapted, logits_of, model, paths_of
from tests.support.locating import FACTS

peft = pytest.importorskip("peft", reason="adapters are trained with peft")

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out")


def adalora(**options: object) -> AdaLora:
    return AdaLora(**{"steps": 10, "initial_rank": 6, "target_rank": 2, **options})


def budget(editor: AdaLora, num_adapters: int, step: int, num_steps: int) -> int:
    """Directions allowed at a step, written from the schedule's definition."""
    first, last = editor.initial_rank * num_adapters, editor.target_rank * num_adapters
    warm_up, final = int(editor.warm_up * num_steps), int(editor.final * num_steps)
    if step <= warm_up:
        return first
    if step > num_steps - final:
        return last
    left = 1 - (step - warm_up) / (num_steps - final - warm_up)
    return math.floor(last + (first - last) * left**3)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_fresh_adapters_change_no_bit(family: str) -> None:
    lm, editor = model(family), adalora()
    before = logits_of(lm)
    with adapted(editor, lm) as (_, adapters), torch.no_grad():
        assert torch.equal(logits_of(lm), before)
        for adapter in adapters.values():
            assert 0.01 < float(adapter["A"].std()) < 0.03
            assert not adapter["E"].any()
            adapter["E"].fill_(1.0)
        assert not torch.equal(logits_of(lm), before)


@pytest.mark.parametrize(
    ("options", "num_facts"),
    [
        ({"warm_up": 0.2, "final": 0.3}, 2),
        ({"steps": 20, "warm_up": 0.0, "final": 0.0}, 1),
        ({"steps": 2}, 1),
        ({"interval": 3}, 2),
    ],
)
def test_directions_stay_within_the_budget(options: dict[str, object], num_facts: int) -> None:
    lm, editor = model("llama"), adalora(**options)
    notes = editor.edit(lm, FACTS[:num_facts]).patch.header.notes
    num_adapters, num_steps = len(paths_of(editor, lm)), editor.steps * num_facts
    ranks = notes["ranks"]
    assert len(ranks) == num_steps
    allowed = [budget(editor, num_adapters, step + 1, num_steps) for step in range(num_steps)]
    warm_up = int(editor.warm_up * num_steps)
    assert ranks[:warm_up] == [editor.initial_rank * num_adapters] * warm_up
    assert ranks[-1] <= editor.target_rank * num_adapters
    settled = editor.settled_after(num_steps)
    assert len(set(ranks[settled - 1 :])) == 1
    if editor.interval == 1:
        assert all(rank <= limit for rank, limit in zip(ranks, allowed, strict=True))
        assert ranks == sorted(ranks, reverse=True)
        # Ties aside, the budget is spent.
        assert sum(allowed) - sum(ranks) <= 2


def test_the_patch_holds_only_the_directions_that_stayed() -> None:
    lm, editor = model("llama", torch.float64), adalora()
    patch = editor.edit(lm, FACTS[:2]).patch
    notes = patch.header.notes
    sites = editor.sites(lm)
    assert list(notes["rank"]) == [str(site) for site in sites]
    assert sum(notes["rank"].values()) == notes["ranks"][-1] == editor.target_rank * len(sites)
    assert len(set(notes["rank"].values())) > 1
    for site in sites:
        rank = notes["rank"][str(site)]
        if rank:
            assert patch.changes[site].rank == rank
            assert int(torch.linalg.matrix_rank(dense(patch.changes[site]))) == rank
        else:
            assert site not in patch.changes


def test_a_module_that_kept_nothing_is_not_in_the_patch() -> None:
    lm, editor = model("llama"), adalora(initial_rank=2, target_rank=1, seed=0)
    none_kept = None
    for seed in range(4):
        patch = adalora(initial_rank=2, target_rank=1, seed=seed).edit(lm, FACTS[:1]).patch
        rank = patch.header.notes["rank"]
        none_kept = next((site for site in editor.sites(lm) if rank[str(site)] == 0), None)
        if none_kept is not None:
            break
    assert none_kept is not None
    assert none_kept not in patch.changes


def test_the_change_is_the_kept_triplets_with_the_fixed_scale() -> None:
    editor = adalora(alpha=5.0)
    generator = torch.Generator().manual_seed(0)
    p, e, q = (torch.randn(*shape, generator=generator) for shape in ((7, 6), (6, 1), (6, 9)))
    e[[1, 4]] = 0.0
    change = editor.factors({"A": q, "E": e, "B": p})
    assert change.rank == 4
    expected = 5.0 / (6 + 1e-5) * p @ torch.diag(e[:, 0]) @ q
    torch.testing.assert_close(change.to_dense(), expected)
    assert editor.factors({"A": q, "E": 0 * e, "B": p}).rank == 0


class _Toy(nn.Module):
    """Two linear layers of two inputs and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)


def test_scores_are_those_of_the_formula() -> None:
    """Two adapters of two directions, three steps: which stay follows from scores by hand."""
    editor = AdaLora(steps=4, initial_rank=2, target_rank=1, warm_up=0.5, final=0.0, smoothing=0.7)
    toy, num_steps = _Toy(), 4
    tuner = editor.attach(toy, ["one", "two"], num_steps)
    adapters = [editor.parameters(layer) for layer in (toy.one, toy.two)]
    generator = torch.Generator().manual_seed(0)
    mean = [{key: torch.zeros_like(one) for key, one in a.items()} for a in adapters]
    doubt = [{key: torch.zeros_like(one) for key, one in a.items()} for a in adapters]
    for step in range(1, num_steps):
        for index, adapter in enumerate(adapters):
            for key, one in adapter.items():
                one.data = torch.randn(one.shape, generator=generator)
                one.grad = torch.randn(one.shape, generator=generator)
                now = (one.data * one.grad).abs()
                mean[index][key] = 0.7 * mean[index][key] + 0.3 * now
                doubt[index][key] = 0.7 * doubt[index][key] + 0.3 * (now - mean[index][key]).abs()
        values = [adapter["E"].detach().clone() for adapter in adapters]
        editor.after_step(tuner, step)
    scores = {}
    for index in range(2):
        score = {key: mean[index][key] * doubt[index][key] for key in "AEB"}
        for j in range(2):
            of_p, of_q = score["B"][:, j].mean(), score["A"][j].mean()
            scores[index, j] = float(score["E"][j, 0] + of_p + of_q)
    allowed = budget(editor, 2, num_steps - 1, num_steps)
    assert allowed == 2
    best = sorted(scores, key=scores.__getitem__, reverse=True)[:allowed]
    for index, adapter in enumerate(adapters):
        for j in range(2):
            expected = values[index][j] if (index, j) in best else torch.zeros(1)
            assert torch.equal(adapter["E"][j].detach(), expected)


def test_the_penalty_is_zero_for_orthonormal_directions() -> None:
    editor = adalora(initial_rank=3, target_rank=1, orthogonality=0.5)
    generator = torch.Generator().manual_seed(0)
    orthonormal = torch.linalg.qr(torch.randn(5, 3, generator=generator))[0]
    p, q = orthonormal.clone().requires_grad_(), orthonormal.T.clone().requires_grad_()
    penalty = editor.penalty([{"A": q, "E": torch.zeros(3, 1), "B": p}])
    assert float(penalty.detach()) == pytest.approx(0.0, abs=1e-6)
    exact = torch.eye(3).requires_grad_()
    editor.penalty([{"A": exact, "E": torch.zeros(3, 1), "B": exact}]).backward()
    assert torch.isfinite(exact.grad).all()
    first = {"A": 2 * q, "E": torch.zeros(3, 1), "B": p}
    second = {"A": q, "E": torch.zeros(3, 1), "B": 3 * p}
    expected = 0.5 * (3 * math.sqrt(3) + 0 + 0 + 8 * math.sqrt(3)) / 4
    assert float(editor.penalty([first, second]).detach()) == pytest.approx(expected, rel=1e-4)
    assert adalora(orthogonality=0.0).penalty([first]) is None


def test_the_penalty_counts_for_training_and_not_for_the_losses() -> None:
    lm = model("llama")
    heavy, light = (
        adalora(steps=2, orthogonality=price, learning_rate=1e-6, dropout=0.0)
        .edit(lm, FACTS[:1])
        .patch.header.notes
        for price in (50.0, 0.5)
    )
    assert heavy["losses"][0] == pytest.approx(light["losses"][0], rel=1e-3)
    assert heavy["penalties"][0] == pytest.approx(100 * light["penalties"][0], rel=1e-4)
    falling = adalora(steps=10).edit(lm, FACTS[:1]).patch.header.notes["penalties"]
    assert falling[-1] < falling[0]


def test_without_pruning_every_direction_stays() -> None:
    lm, editor = model("llama"), AdaLora(steps=2, pruning=False)
    notes = editor.edit(lm, FACTS[:1]).patch.header.notes
    assert set(notes["rank"].values()) == {12}
    assert editor.scale == pytest.approx(32 / 12, rel=1e-5)


def test_training_goes_on_until_the_directions_are_chosen() -> None:
    lm = model("llama")
    options = {"parts": ("mlp.down",), "steps": 60, "learning_rate": 0.02, "stop_loss": 0.8}
    pruned = adalora(**options, final=0.5).edit(lm, [FACT])
    notes = pruned.patch.header.notes
    assert notes["stop"] == "loss"
    assert 30 <= notes["steps"] < 60
    assert notes["ranks"][-1] == 2 * 2
    assert notes["final_losses"][0] < 0.8
    free = adalora(**options, pruning=False).edit(lm, [FACT]).patch.header.notes
    assert free["stop"] == "loss"
    assert free["steps"] < 30
    with pruned.patch.apply(lm):
        assert adalora(**options).edit(lm, [FACT]).patch.is_empty


class _Failing(AdaLora):
    def after_step(self, tuner: nn.Module, step: int) -> None:
        super().after_step(tuner, step)
        if step > 1:
            raise RuntimeError("in the middle")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_nothing_stays_behind(family: str) -> None:
    lm = model(family)
    torch.manual_seed(3)
    before = Snapshot(lm)
    adalora(steps=3).edit(lm, FACTS[:2])
    before.require_same()
    with pytest.raises(RuntimeError, match="in the middle"):
        _Failing(steps=4).edit(lm, FACTS)
    before.require_same()


def test_the_seed_alone_decides() -> None:
    lm = model("gpt2")
    patches = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        patches.append(adalora(steps=3).edit(lm, FACTS[:2]).patch)
    assert patches[0] == patches[1]
    assert adalora(steps=3, seed=1).edit(lm, FACTS[:2]).patch.digest() != patches[0].digest()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_merged_unmerged_and_exported_agree(family: str, tmp_path) -> None:
    lm, editor = model(family), adalora(steps=5)
    patch = editor.edit(lm, FACTS[:2]).patch
    with patch.apply(lm):
        merged = logits_of(lm)
    rows = labelled_rows(lm, FACTS[:2])
    trained = train(lm, editor, paths_of(editor, lm), rows, ["", ""], editor, {})
    with adapted(editor, lm) as (_, adapters), torch.no_grad():
        for path, adapter in adapters.items():
            for key, parameter in adapter.items():
                parameter.copy_(trained.adapters[path][key])
        unmerged = logits_of(lm)
    assert (unmerged - merged).norm() <= 1e-5 * merged.norm()
    export_peft(patch, lm, tmp_path)
    fresh = model(family)
    fresh.model = peft.PeftModel.from_pretrained(fresh.model, tmp_path).eval()
    assert (logits_of(fresh) - merged).norm() <= 1e-5 * merged.norm()


def test_settings_without_a_schedule_are_refused() -> None:
    with pytest.raises(BadConfig, match=r"CG502.*target_rank must be below initial_rank"):
        AdaLora(initial_rank=8, target_rank=8)
    with pytest.raises(BadConfig, match="no step in which the budget falls"):
        AdaLora(warm_up=0.5, final=0.5)
    lm = model("llama")
    assert not AdaLora(initial_rank=8, target_rank=8, pruning=False).pruning
    with pytest.raises(BadConfig, match="before there is a score"):
        adalora(steps=1).edit(lm, [FACT])
    assert not adalora(steps=1, pruning=False).edit(lm, [FACT]).patch.is_empty


def test_a_fact_of_the_pocket_model_changes() -> None:
    lm = cg.load("pocket", dtype=torch.float32)
    fact = Fact(prompt="The capital of France is", subject="France", target="Rome")
    digest = lm.digest()
    patch = cg.edit(lm, fact, editor="adalora")
    ranks = patch.header.notes["ranks"]
    assert ranks[-1] < ranks[0]
    with patch.apply(lm):
        assert cg.answer(lm, fact.prompt).startswith("Rome")
    assert lm.digest() == digest
