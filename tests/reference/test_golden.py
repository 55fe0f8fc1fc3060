"""Parity with stored outputs of the public implementations, where they are at hand.

Named deviations: none in keys, targets and changes. The references take the ridge of EMMET for
batches only and none for single edits, so the same is configured here.
"""

from __future__ import annotations

import pytest
from torch import Tensor

from corrigenda.engines.locate import pipeline
from corrigenda.engines.locate.contexts import Contexts
from corrigenda.facts import Fact
from corrigenda.lm.sites import Site, key
from corrigenda.methods.emmet.editor import Emmet
from corrigenda.methods.memit.editor import Memit
from corrigenda.methods.rome.editor import Rome
from corrigenda.patch import WeightPatch
from tests.support.golden import (
    PLAIN,
    PREFIXES,
    TOLERANCE,
    TWO_LEVEL,
    check_trace,
    common,
    expected_change,
    facts,
    golden,
    model,
    needed,
    relative,
    slow,
    state,
    tensors,
)

pytestmark = needed


@pytest.mark.parametrize("index", [0, 1, 2, *(slow(index) for index in range(3, 8))])
@pytest.mark.parametrize(
    ("method", "variant"), [("orig_rome", "rome"), ("rome", "rome"), ("r-rome", "r-rome")]
)
def test_rome(method: str, variant: str, index: int) -> None:
    layer = golden(method)["hparams"]["layers"][0]
    editor = Rome(variant=variant, layer=layer, contexts=PLAIN, **common(method))
    fact = facts(8)[index]
    patch = editor.edit(model(), [fact], state()).patch
    assert isinstance(patch, WeightPatch)
    tag = f"s{index}"
    check_trace(patch, 0, golden(method)["single"][index]["loss_trace_total_nll_kl_wd"])
    change = patch.changes[Site(layer)]
    assert relative(change.to_dense(), expected_change(method, tag, layer)) <= TOLERANCE
    direction = change.right[:, 0] / change.right.norm()
    assert relative(direction, tensors(method)[f"{tag}/u"]) <= TOLERANCE
    stored = tensors(method)
    if f"{tag}/k_star" in stored:
        check_key_and_target(editor, fact, stored, tag)


def check_key_and_target(editor: Rome, fact: Fact, stored: dict[str, Tensor], tag: str) -> None:
    (site,) = editor.sites(model())
    constraint = editor.constraints(model(), [fact], state())[site]
    sequences = pipeline.subject_tokens(model(), [fact], Contexts(PREFIXES))
    keys = pipeline.capture_last(model(), sequences, [key(site)])[key(site)]
    mean = pipeline.average(keys, PLAIN.weights)[0]
    assert relative(mean, stored[f"{tag}/k_star"]) <= TOLERANCE
    assert relative(keys[0], stored[f"{tag}/cur_input"]) <= TOLERANCE
    bias = model().bias(site).double()
    wanted = stored[f"{tag}/v_star"].double()
    if editor.variant == "r-rome":
        # The stored `v_star` is what the change gives at the clean key; the target is what it
        # gives at the averaged one.
        at, u = stored[f"{tag}/k_star"].double(), stored[f"{tag}/u"].double()
        wanted = model().weight(site).double() @ at + bias
        wanted += stored[f"{tag}/right_vector"].double() * (at @ u)
    assert relative(constraint.values[:, 0] + bias, wanted) <= TOLERANCE


@pytest.mark.parametrize("method", ["orig_memit", "memit"])
@pytest.mark.parametrize("tag", ["s0", "s1", "b16", *(slow(f"s{i}") for i in range(2, 8))])
def test_memit(method: str, tag: str) -> None:
    hparams = golden(method)["hparams"]
    editor = Memit(
        layers=tuple(hparams["layers"]),
        weight=hparams["mom2_update_weight"],
        contexts=TWO_LEVEL,
        **common(method),
    )
    check_spread(method, tag, editor)


@pytest.mark.parametrize("tag", ["s0", "s1", "b16", slow("s2"), slow("s3")])
def test_emmet(tag: str) -> None:
    hparams = golden("orig_emmet")["hparams"]
    ridge = hparams["emmet_lambda"] * hparams["mom2_update_weight"]
    editor = Emmet(
        layer=hparams["layers"][0],
        gamma=ridge if tag == "b16" else 0.0,
        contexts=TWO_LEVEL,
        **common("orig_emmet"),
    )
    check_spread("orig_emmet", tag, editor)


def check_spread(method: str, tag: str, editor: Memit | Emmet) -> None:
    wanted = facts(16) if tag == "b16" else [facts(8)[int(tag[1:])]]
    record = golden(method)["batch"] if tag == "b16" else golden(method)["single"][int(tag[1:])]
    traces = record["loss_trace_total_nll_kl_wd"]
    patch = editor.edit(model(), wanted, state()).patch
    assert isinstance(patch, WeightPatch)
    searches = patch.header.notes["search"]
    begin = 0
    for index, search in enumerate(searches):
        length = len(search["losses"])
        check_trace(patch, index, traces[begin : begin + length])
        begin += length
    assert begin == len(traces)
    for layer in golden(method)["hparams"]["layers"]:
        change = patch.changes[Site(layer)].to_dense()
        assert relative(change, expected_change(method, tag, layer)) <= TOLERANCE
    stored = tensors(method)
    layers = editor.solve_layers(model(), wanted, state())
    for one in layers:
        name = f"{tag}/ks_layer{one.site.layer}"
        if name in stored:
            assert relative(one.keys, stored[name]) <= TOLERANCE
