"""RLSEdit: the recursion equals one joint regression, what it shares with MEMIT, its price."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from corrigenda.engines.locate.layers import SolvedLayer
from corrigenda.errors import BadConfig
from corrigenda.linalg.solve import ridge
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.methods.memit.editor import Memit
from corrigenda.methods.rlsedit.editor import RLSEdit
from corrigenda.patch.changes import dense
from corrigenda.state import State
from tests.support.locating import FACTS, TWO_LEVEL, model, moments

LAYERS = (1, 2)
OPTIONS = {"layers": LAYERS, "contexts": TWO_LEVEL, "steps": 5, "learning_rate": 0.2}


def rlsedit(**options: object) -> RLSEdit:
    return RLSEdit(**{"weight": 0.5, **OPTIONS, **options})


def price(editor: RLSEdit, state: State, site: Site) -> Tensor:
    """S of the paper, dense."""
    metric = state.factor(site).matrix()
    eye = torch.eye(len(metric), dtype=metric.dtype)
    return editor.norm_weight * eye + editor.anchor**2 * (editor.weight or 0.0) * metric


def edit_in_batches(
    lm: LanguageModel, editor: RLSEdit | Memit, batches: list[list[int]], state: State
) -> tuple[dict[Site, Tensor], dict[Site, list[SolvedLayer]]]:
    """The change of each weight after all batches, and what was solved in each of them."""
    solved: dict[Site, list[SolvedLayer]] = {Site(layer): [] for layer in LAYERS}
    applied = []
    for batch in batches:
        facts = [FACTS[index] for index in batch]
        for layer in editor.solve_layers(lm, facts, state):
            solved[layer.site].append(layer)
        made = editor.edit(lm, facts, state)
        state = made.state
        applied.append(made.patch.apply(lm))
    total = {site: sum(dense(one.patch.changes[site]) for one in applied) for site in solved}
    for one in reversed(applied):
        one.revert()
    return total, solved


@pytest.mark.parametrize("batches", [[[0, 1], [2, 3]], [[0], [1], [2], [3]], [[0, 1, 2], [3]]])
@pytest.mark.parametrize(("anchor", "norm_weight"), [(1.0, 0.0), (0.7, 2.2), (0.0, 4.0)])
def test_batches_equal_one_joint_regression(
    batches: list[list[int]], anchor: float, norm_weight: float
) -> None:
    """With V = W K + R of each batch: W - W_0 = sum (V - W_0 K) K^T (S + sum K K^T)^-1."""
    lm, editor = model("llama", torch.float64), rlsedit(anchor=anchor, norm_weight=norm_weight)
    state = moments(lm, LAYERS)
    total, solved = edit_in_batches(lm, editor, batches, state)
    for site, layers in solved.items():
        system, cross = price(editor, state, site), torch.zeros_like(total[site])
        so_far = torch.zeros_like(total[site])
        for layer in layers:
            keys = layer.keys.T
            cross += (layer.share.T + so_far @ keys) @ keys.T
            system = system + keys @ keys.T
            so_far = so_far + layer.change.to_dense()
        joint = torch.linalg.solve(system, cross.T).T
        assert (total[site] - joint).norm() <= 1e-8 * joint.norm()


def test_without_a_price_of_the_norm_it_is_memit_in_sequence() -> None:
    """Keys of a layer depend on lower layers alone: they are the same as written and edited."""
    lm = model("llama", torch.float64)
    state = moments(lm, LAYERS)
    ours, memit = rlsedit(), Memit(weight=0.5, sequential=True, **OPTIONS)
    found, same = (
        edit_in_batches(lm, editor, [[0, 1], [2], [3]], state)[0] for editor in (ours, memit)
    )
    for site, change in found.items():
        assert (change - same[site]).norm() <= 1e-10 * same[site].norm()


def test_a_layer_solves_the_ridge_of_the_joint_price() -> None:
    lm, editor = model("llama", torch.float64), rlsedit(norm_weight=2.2)
    state = moments(lm, LAYERS)
    for layer in editor.solve_layers(lm, FACTS, state):
        whole = price(editor, state, layer.site)
        expected = ridge(layer.keys.T, layer.share.T, whole, weight=1.0).to_dense()
        assert (layer.change.to_dense() - expected).norm() <= 1e-9 * expected.norm()


def test_a_higher_price_of_either_kind_changes_less() -> None:
    lm = model("llama")
    state = moments(lm, LAYERS)
    sizes = [
        sum(rlsedit(**options).edit(lm, FACTS[:1], state).patch.norms().values())
        for options in ({}, {"norm_weight": 9.0}, {"norm_weight": 1e12}, {"anchor": 1e6})
    ]
    assert sizes[0] > sizes[1] > 1e3 * max(sizes[2:])


def test_without_any_price_it_is_refused() -> None:
    with pytest.raises(BadConfig, match="would cost nothing"):
        rlsedit(anchor=0.0, norm_weight=0.0)


def test_the_state_does_not_grow_for_good() -> None:
    lm, editor = model("llama"), rlsedit()
    state = moments(lm, LAYERS)
    sizes = []
    for _ in range(8):
        state = editor.edit(lm, FACTS, state).state
        sizes.append(sum(one.numel() for one in state.tensors.values()))
    assert sizes[-1] == sizes[-2] == sizes[-3]
